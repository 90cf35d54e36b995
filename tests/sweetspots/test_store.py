"""Sweetspots on disk, and the words for those that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning.runs import atomic, manifest
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.rules import parse
from tuning.sweetspots.store import (
    METADATA,
    Skipped,
    checkpoint_name,
    find_sweetspot,
    sweetspot_hash,
    sweetspot_name,
)

pytestmark = pytest.mark.unit


def reach(run: RunDirectory, label: str, used: int) -> Path:
    folder = run.path / checkpoint_name(label)
    with atomic.whole_directory(folder) as made:
        (made / "weights").write_text("123")
        atomic.write_json(made / METADATA, {"sft_data_used": used, "perplexity": 1.98})
        manifest.write_manifest(made)
    return folder


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "sft")


def finish(run: RunDirectory, **outcomes) -> None:
    run.write_result(sweetspots=outcomes)
    run.write_status("done", "", {"train": {"state": "done"}})


def test_names():
    assert checkpoint_name("ppl-2.0") == "checkpoint-sweetspot-2.0"
    assert checkpoint_name("ppl-2@0.02") == "checkpoint-sweetspot-2@0.02"
    assert checkpoint_name("pass@1-0.3") == "checkpoint-sweetspot-pass@1-0.30"
    assert sweetspot_name("sft", "ppl-2.0") == "sft_sweetspot-ppl-2.0"
    hashes = {sweetspot_hash(h, label) for h in "ab" for label in ("ppl-2.0", "ppl-1.6")}
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("label", "outcome", "words"),
    [
        (
            "ppl-2.0",
            {"state": "unreached", "best": 2.3126},
            "perplexity never reached 2.0 (best 2.31)",
        ),
        ("ppl-2.0", {"state": "met_by_base", "value": 1.9}, "met by the base, 1.9"),
        ("ppl-1.5", {"state": "unreached", "best": 1.6}, "perplexity never reached 1.5 (best 1.6)"),
        (
            "ppl-2@0.02",
            {"state": "unreached", "best": 1.3},
            "perplexity kept falling by 0.02 or more",
        ),
    ],
)  # fmt: skip
def test_why_one_is_missing(run, label, outcome, words):
    finish(run, **{label: outcome})
    with pytest.raises(Skipped) as caught:
        find_sweetspot(run, label)
    assert (str(caught.value), caught.value.cause) == (words, outcome["state"])


def test_the_best_that_missed_does_not_look_like_a_hit():
    """2.004 rounds to the threshold that it did not reach."""
    assert "(best 2.004)" in parse("ppl-2.0").missed(2.004)


def test_one_that_was_reached_is_found_before_the_run_has_ended(run):
    path = reach(run, "ppl-2.0", used=480)
    spot = find_sweetspot(run, "ppl-2.0")
    assert (spot.path, spot.label, spot.data_used) == (path, "ppl-2.0", 480)


def test_half_a_checkpoint_is_none(run):
    (reach(run, "ppl-2.0", used=480) / "weights").write_text("12")
    with pytest.raises(StageFailed, match=r"has not reached ppl-2\.0 yet"):
        find_sweetspot(run, "ppl-2.0")


def test_a_run_that_is_not_done_is_still_to_reach_it(run):
    run.write_status("running", "", {"train": {"state": "running"}})
    with pytest.raises(StageFailed, match=r"has not reached ppl-2\.0 yet"):
        find_sweetspot(run, "ppl-2.0")


def test_a_label_that_the_run_does_not_have_names_the_nearest(run):
    finish(run, **{"ppl-2.0": {"state": "reached", "step": 5}})
    with pytest.raises(UserError, match=r"it has: ppl-2\.0\. Did you mean 'ppl-2\.0'\?"):
        find_sweetspot(run, "ppl-2")


@pytest.mark.parametrize(("used", "left"), [(0, 1000), (480, 520), (999, 1)])
def test_what_is_left_of_the_budget(run, used, left):
    reach(run, "ppl-2.0", used)
    assert find_sweetspot(run, "ppl-2.0").left_of(1000) == left


@pytest.mark.parametrize("used", [1000, 1200])
def test_nothing_left_is_skipped(run, used):
    reach(run, "ppl-2.0", used)
    with pytest.raises(Skipped, match=f"SFT used {used} of 1000 examples; none is left") as caught:
        find_sweetspot(run, "ppl-2.0").left_of(1000)
    assert caught.value.cause == "no_budget_left"
