"""How models are called: with no more than what tells the rows of a report apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.rows import Row
from tuning.sweetspots.rules import Patience, Rule, Threshold, parse

pytestmark = pytest.mark.unit


def row(role: str, **values: Any) -> Row:
    common: dict[str, Any] = {"model": "tiny", "seed": None if role == "base" else 1}
    return Row(
        stage_name=role, run_name=role, role=role, state="done", note="", config_hash="",
        **(common | values),
    )  # fmt: skip


SPOTS = [
    row("base", seed=7),
    row("sft", train_size=2000, sft_data_used=1920),
    row("sweetspot", rule=parse("ppl-2.0")),
    row("fork", rule=parse("ppl-2.0"), pft_method="dpo", total_budget=3000),
    row("reference_sft", train_size=3000, total_budget=3000),
    row("reference_pt", train_size=3000, total_budget=3000, pft_method="dpo"),
]
SPLITS = [
    row("base"),
    row("sft", train_size=250),
    row("pt", train_size=750, sft_share=250, pft_method="kto", total_budget=1000),
    row("reference_sft", train_size=1000, total_budget=1000),
]


@pytest.mark.parametrize(
    ("label", "rule", "name"),
    [
        ("ppl-2.0", Threshold(value=2.0), "ppl 2.0"),
        ("ppl-2@0.02", Patience(evaluations=2, change=0.02), "patience 2@0.02"),
    ],
)
def test_the_label_of_a_sweetspot_is_taken_apart(label: str, rule: Rule, name: str) -> None:
    assert parse(label) == rule
    assert rule.words == name


def test_one_budget_needs_no_numbers() -> None:
    labels = Labels.of(SPOTS)
    assert [labels.label(row) for row in SPOTS] == [
        "base model", "SFT", "SFT to ppl 2.0", "DPO from ppl 2.0", "SFT, whole budget",
        "DPO only, whole budget",
    ]  # fmt: skip
    assert [labels.prose(row) for row in SPOTS] == [
        "the base model", "SFT on 1,920 examples", "SFT to ppl 2.0", "DPO from ppl 2.0",
        "SFT on the whole budget", "DPO alone on the whole budget",
    ]  # fmt: skip
    assert labels.budget(3000) == "the budget"


def test_splits_and_several_budgets_are_named_by_numbers() -> None:
    labels = Labels.of(SPLITS)
    assert [labels.label(row) for row in SPLITS] == [
        "base model", "SFT 250", "SFT 250, then KTO 750", "SFT 1,000",
    ]  # fmt: skip
    assert [labels.step(row) for row in SPLITS] == ["tiny", "SFT 250", "KTO 750", "SFT 1,000"]
    patience = replace(SPOTS[3], rule=parse("ppl-2@0.02"))
    assert labels.step(patience) == "DPO from 2@0.02"
    assert labels.prose(SPLITS[2]) == "SFT on 250 then KTO on 750 examples"
    assert labels.budget(1000) == "1,000 examples"
    two = [*SPOTS, replace(SPOTS[3], total_budget=900), replace(SPOTS[4], total_budget=900)]
    names = [Labels.of(two).label(row) for row in two]
    assert "DPO from ppl 2.0, 900 in all" in names and "SFT 3,000" in names


def test_models_and_seeds_are_named_only_if_they_tell_runs_apart() -> None:
    assert not Labels.of([row("sft", seed=1), row("reference_sft", seed=2)]).seeds
    rows = [row("sft", seed=1), row("sft", seed=2), row("sft", seed=1, model="big")]
    labels = Labels.of(rows)
    assert [labels.label(row) for row in rows] == [
        "tiny: SFT, seed 1", "tiny: SFT, seed 2", "big: SFT, seed 1",
    ]  # fmt: skip
    assert labels.prose(replace(rows[0], train_size=9)) == "SFT on 9 examples (tiny, seed 1)"
    assert labels.within_budget().label(rows[0]) == "SFT"


def test_sweetspots_and_splits_of_one_report_have_different_colours() -> None:
    fork, pt = replace(SPOTS[3], total_budget=1000), SPLITS[2]
    palette = Palette([fork, pt])
    assert palette.name(fork) != palette.name(pt)
