"""The tuning of an experiment's runs in its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuning.plan import Plan, Stage
from tuning.report.tunings import Tuning, tunings

pytestmark = pytest.mark.unit


def stage(name: str, **more) -> Stage:
    return Stage(name=name, role="sft", hash="h" + name, phases=("train",), **more)


def tuned(home: Path, name: str, **choice) -> None:
    folder = home / "models" / name
    folder.mkdir(parents=True)
    found = {
        "key": "k",
        "source": "cache",
        "trials": 3,
        "seconds": 12.4,
        "why": "best: 8",
        **choice,
    }
    (folder / "autotune.json").write_text(json.dumps(found))
    (folder / "autotune.svg").write_text(f"<svg><text>{name}</text></svg>\n")


def test_runs_that_share_a_choice_are_told_once_by_the_one_that_searched(tmp_path):
    tuned(tmp_path, "a")
    tuned(tmp_path, "b", source="search", prediction_error="memory off by 2%")
    tuned(tmp_path, "c", key="another", source="default", why="nothing is safe")
    plan = Plan(experiment="e", stages=tuple(map(stage, ("a", "b", "c", "untuned"))))
    first, second = tunings(plan, tmp_path)
    assert first == Tuning(
        runs=("a", "b"),
        text="Found by 3 trials in 12 seconds. best: 8. predictions: memory off by 2%",
        svg="<svg><text>b</text></svg>\n",
    )
    assert second.runs == ("c",)
    assert second.text.endswith("own settings were used. nothing is safe")


def test_what_was_edited_does_not_end_the_report(tmp_path):
    tuned(tmp_path, "a", trials=None, seconds="?")
    (tmp_path / "models/a/autotune.svg").write_text("<script>alert(1)</script>")
    tuned(tmp_path, "b")
    (tmp_path / "models/b/autotune.json").write_text("{")
    (found,) = tunings(Plan(experiment="e", stages=(stage("a"), stage("b"))), tmp_path)
    assert found.svg == ""
