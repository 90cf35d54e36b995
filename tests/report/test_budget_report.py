"""The report of budget experiments: rows, comparisons of like with like, the headline, the page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from fake_experiment import Fake, fake, fake_budget

from tuning.experiments.budget import merged
from tuning.report.answer import Answer, answer
from tuning.report.build import write_report
from tuning.report.comparisons import compare
from tuning.report.labels import Labels
from tuning.report.read import gather
from tuning.report.rows import Row, budgets
from tuning.report.seeds import united
from tuning.report.text_table import BUDGET_COLUMNS
from tuning.runs.rundir import RunDirectory

pytestmark = pytest.mark.unit

GRID = {
    "base_models": ("tiny", "llama3-8B"), "train_sizes": (500, 2000), "pft_methods": ("dpo", "kto"),
    "sft_ratios": ("0", "0.5", "1"), "seeds": (1, 2),
}  # fmt: skip


def written(made: Fake, *roles: str) -> list[Row]:
    made.write(*roles)
    return gather(made.plan, made.home)


def labels(rows: list[Row]) -> list[str]:
    return [Labels.of(rows).label(row) for row in rows]


def answered(rows: list[Row]) -> Answer:
    return answer(rows, compare(rows), Labels.of(rows))


def csv_rows(home: Path) -> list[dict[str, str]]:
    with (home / "outputs/reports/trial/results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def html(home: Path) -> str:
    return (home / "outputs/reports/trial/report.html").read_text(encoding="utf-8")


def test_preference_tuning_after_sft_counts_both_parts(home: Path) -> None:
    written_rows = written(fake_budget(home))
    rows = {row.run_name: row for row in written_rows}
    sft, pt = rows["tiny_sft-arith-250"], rows["tiny_sft-arith-250_pt-arith-750"]
    assert (pt.role, pt.parent) == ("pt", sft.run_name)
    assert Labels.of(written_rows).label(pt) == "SFT 250, then DPO 750"
    assert (pt.sft_data_used, pt.pft_data, pt.total_data, pt.total_budget) == (250, 750, 1000, 1000)
    assert pt.sft_cost == sft.cost and pt.pft_cost == pt.cost and pt.perplexity == sft.perplexity
    assert (sft.parent, sft.total_data, sft.total_budget) == ("tiny", 250, None)
    assert set(labels(written_rows)) == {
        "base model", "DPO 1,000", "SFT 250", "SFT 250, then DPO 750", "SFT 750",
        "SFT 750, then DPO 250", "SFT 1,000",
    }  # fmt: skip


def test_a_parent_that_stood_before_is_a_row_too(home: Path) -> None:
    made = fake_budget(home)
    made.write("pretrain", "sft")
    made = fake_budget(home, do_sft_first=False)
    rows = {row.run_name: row for row in written(made)}
    assert rows["tiny_sft-arith-250"].state == "done"
    assert rows["tiny_sft-arith-250_pt-arith-750"].total_data == 1000


def test_csv_tells_models_and_budgets_apart(home: Path) -> None:
    made = fake_budget(home, **GRID)
    made.write()
    write_report(made.plan, home)
    rows = csv_rows(home)
    assert tuple(rows[0]) == (*BUDGET_COLUMNS, "format")
    assert {row["sft_ratio"] for row in rows if row["total_budget"]} == {"0.0", "0.5", "1.0"}
    assert [row["config_hash"] for row in rows] == [
        stage.hash for stage in made.plan.stages if stage.role != "pretrain"
    ]
    found = {(row["model"], row["total_budget"]) for row in rows if row["stage"] == "pt"}
    assert found == {(m, s) for m in ("tiny", "llama3-8B") for s in ("500", "2000")}
    assert all(row["total_data"] == row["total_budget"] for row in rows if row["total_budget"])


def test_labels_name_the_model_and_the_seed_where_there_are_several(home: Path) -> None:
    found = labels(written(fake_budget(home, **GRID)))
    assert len(set(found)) == len(found)
    assert "tiny: base model" in found and "llama3-8B: SFT 250, then KTO 250, seed 2" in found


def test_every_model_is_compared_with_its_own_base_and_budget(home: Path) -> None:
    rows = written(fake_budget(home, **GRID))
    found = compare(rows)
    assert {c.question for c in found.questions} == {"whole_budget", "base"}
    for c in found.questions:
        assert c.ours.model == c.theirs.model
        expected = "base" if c.question == "base" else "reference_sft"
        assert c.theirs.role == expected
    whole = found.about("whole_budget")
    assert len(whole) == 2 * 2 * 2 * 2 * 2
    for c in whole:
        assert (c.ours.total_budget, c.ours.seed) == (c.theirs.total_budget, c.theirs.seed)
    bases = {row.model: row.run_name for row in rows if row.role == "base"}
    parents = {row.model: row.parent for row in rows if row.role == "reference_sft"}
    assert parents == bases == {"tiny": "tiny", "llama3-8B": "llama3-8B"}


def test_only_the_base_of_this_project_has_a_cost(home: Path) -> None:
    rows = written(fake_budget(home, **GRID))
    assert {row.model: bool(row.cost) for row in rows if row.role == "base"} == {
        "tiny": True, "llama3-8B": False,
    }  # fmt: skip


def test_preference_tuning_is_compared_with_an_sft_run_that_was_scored(home: Path) -> None:
    rows = written(fake_budget(home, train_sizes=(250, 1000), sft_ratios=("0.25", "1")))
    (parent,) = compare(rows).about("parent")
    names = [Labels.of(rows).label(row) for row in (parent.ours, parent.theirs)]
    assert names == ["SFT 250, then DPO 750", "SFT 250"]
    assert parent.theirs.role == "reference_sft"


PT = "tiny_sft-arith-250_pt-arith-750"


@pytest.mark.parametrize(
    ("scores", "title"),
    [
        ({}, "Spend all 1,000 examples on SFT"),
        ({PT: 0.9}, "Spend 250 of 1,000 examples on SFT, then 750 on DPO"),
        ({"tiny_pt-arith-1000": 0.9}, "Spend all 1,000 examples on DPO"),
        (
            {PT: 0.9, "tiny_sft-arith-1000": 0.9},
            "No clear winner for 1,000 examples: 250 on SFT then 750 on DPO, or all on SFT",
        ),
    ],
    ids=["sft", "pt", "reference_pt", "tie"],
)
def test_the_headline_names_the_best_split(
    home: Path, scores: dict[str, float], title: str
) -> None:
    made = fake_budget(home, scores)
    rows = written(made)
    found = answered(rows)
    told = write_report(made.plan, home)
    assert found.title == title
    assert f"<h1>{title}" in html(home) and title in " ".join(told.split())
    assert "of 4 ways to spend 1,000 examples" in found.text


def test_the_headline_is_that_of_the_first_budget_and_the_others_follow(home: Path) -> None:
    rows = written(fake_budget(home, {"tiny_sft-arith-125_pt-arith-375": 0.9}, **(
        GRID | {"seeds": (), "sft_ratios": ("0", "0.25", "1"), "pft_methods": ("dpo",)}
    )))  # fmt: skip
    found = answered(rows)
    assert found.title == "tiny: spend 125 of 500 examples on SFT, then 375 on DPO"
    assert "of 3 ways to spend 500 examples" in found.text
    assert "That is tiny with 500 examples; the 3 other budgets are in the table." in found.text
    assert [f.question for f in found.findings[:3]] == [
        "How should tiny with 2,000 examples be split?",
        "How should llama3-8B with 500 examples be split?",
        "How should llama3-8B with 2,000 examples be split?",
    ]
    assert {f.answer for f in found.findings[:3]} == {"all SFT"}


@pytest.mark.parametrize(
    ("small", "large", "title"),
    [
        (0.9, 0.9, "Best for 250 examples: all SFT; for 1,000: all SFT"),
        (0.9, 0.5, "Best for 250 examples: all SFT; for 1,000 there is no clear winner"),
        (0.5, 0.9, "Best for 1,000 examples: all SFT; for 250 there is no clear winner"),
        (0.5, 0.5, "No clear winner for 250 or for 1,000 examples"),
    ],
)
def test_of_several_budgets_the_headline_names_what_is_best_only_where_that_is_clear(
    home: Path, small: float, large: float, title: str
) -> None:
    scores = {f"tiny_pt-arith-{size}": 0.5 for size in (250, 500, 1000)}
    scores |= {"tiny_sft-arith-250": small, "tiny_sft-arith-500": 0.5, "tiny_sft-arith-1000": large}
    found = answered(
        written(fake_budget(home, scores, train_sizes=(250, 500, 1000), sft_ratios=("0", "1")))
    )
    assert found.title == title
    told = found.text.count("it is not significantly better than")
    assert told == (small == 0.5) + (large == 0.5)
    assert f"for {(small == 0.9) + (large == 0.9)} of 3 budgets" in found.text


def test_the_seeds_of_a_split_are_one_way_with_all_their_answers(home: Path) -> None:
    rows = written(fake_budget(home, **GRID))
    found = budgets(united(rows))
    assert {key: len(ways) for key, ways in found.items()} == {
        (model, size): 5 for model in ("tiny", "llama3-8B") for size in (500, 2000)
    }
    way = next(way for way in found["tiny", 500] if way.role == "reference_sft")
    seeds = [r for r in rows if (r.role, r.model, r.total_budget) == ("reference_sft", "tiny", 500)]
    assert way.scores and way.scores.samples == 16 and len(seeds) == 2
    estimates = [row.scores.first[0] for row in seeds if row.scores]
    assert way.scores.first[0] == pytest.approx(sum(estimates) / 2, abs=1e-5)
    write_report(fake_budget(home, **GRID).plan, home)
    assert "Every way was trained with seeds 1 and 2," in html(home)


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({}, ()),
        ({}, ("nothing",)),
        ({}, ("pretrain", "sft")),
        ({"do_inference": False, "do_evaluation": False}, ()),
        ({"sft_ratios": ("1",), "pft_methods": ()}, ()),
        ({"sft_ratios": ("0.5",)}, ()),
        ({"sft_ratios": ("0",), "pft_methods": ("dpo", "kto", "grpo")}, ()),
        ({"sft_ratios": ("0.01", "0.1"), "train_sizes": (250,)}, ()),
        ({"seeds": (1, 2, 3)}, ()),
        ({"base_models": ("tiny", "llama3-8B"), "sft_ratios": ("0.5",)}, ("pretrain", "base")),
        (GRID | {"train_sizes": (100, 200, 300, 400, 500), "seeds": ()}, ()),
    ],
    ids=str,
)
def test_parts_may_be_missing(
    home: Path, changes: dict[str, object], roles: tuple[str, ...]
) -> None:
    made = fake_budget(home, **changes)
    if not changes.get("do_evaluation", True):
        made.scores = {}
    made.write(*roles)
    told = write_report(made.plan, home)
    page = html(home)
    trained = [stage for stage in made.plan.stages if stage.role != "pretrain"]
    assert len(csv_rows(home)) == len(trained)
    assert told.endswith("report.html") and max(map(len, told.splitlines()[:-1])) <= 120
    assert "</html>" in page and not re.search(r"\bnan\b|None", page)
    assert "Budget experiment" in page and "sweetspot" not in page.partition("</style>")[2]
    assert " fork" not in page.partition("</style>")[2]


def test_what_failed_says_why(home: Path) -> None:
    made = fake_budget(home)
    made.write()
    RunDirectory(home / "models" / PT).write_status(
        "failed", "disk full", {"train": {"state": "pending"}}
    )
    rows = gather(made.plan, home)
    row = next(row for row in rows if row.run_name == PT)
    assert (row.state, row.note) == ("failed", "failed: disk full")
    assert Labels.of(rows).label(row) == "SFT 250, then DPO 750"
    write_report(made.plan, home)
    assert "failed: disk full" in html(home)


def test_two_reports_are_the_same_bytes(home: Path) -> None:
    made = fake_budget(home, pft_methods=("dpo", "kto"))
    made.write()
    first = write_report(made.plan, home), html(home)
    assert (write_report(made.plan, home), html(home)) == first


def test_the_figure_has_a_line_a_method_and_a_point_a_split(home: Path) -> None:
    made = fake_budget(home, pft_methods=("dpo", "kto"))
    made.write()
    write_report(made.plan, home)
    figure = re.search(r'aria-label="pass@1 against the share.*?</svg>', html(home), re.DOTALL)
    assert figure
    tips = re.findall(r"<title>([^:<]*): \d", figure[0])
    assert sorted(tips) == sorted([
        "base model", "DPO 1,000", "KTO 1,000", "SFT 250, then DPO 750", "SFT 250, then KTO 750",
        "SFT 750, then DPO 250", "SFT 750, then KTO 250", "SFT 1,000",
    ])  # fmt: skip
    assert figure[0].count("on the rest") == 2


def test_experiments_of_both_kinds_have_one_report(home: Path) -> None:
    spots = fake(home, thresholds=(2.0,), total_data=1000, sft_data=800)
    splits = fake_budget(home)
    for made in (spots, splits):
        made.write()
    plan = merged([spots.plan, splits.plan], "trial")
    rows = gather(plan, home)
    assert {row.model for row in rows} == {"tiny"}
    assert {row.total_budget for row in rows if row.role in ("fork", "pt")} == {1000}
    write_report(plan, home)
    page = html(home)
    assert "Several experiments" in page
    assert len(csv_rows(home)) == len(plan.stages) - 1
    assert "of 5 ways to spend 1,000 examples" in " ".join(page.split())
    for label in ("DPO from ppl 2.0", "SFT 250, then DPO 750"):
        assert re.search(rf"<title>{label}: \d", page)
    assert "the rest of the budget unspent" in page
