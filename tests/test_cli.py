"""Commands about experiments: which experiment they mean, and what they leave alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.small_site import use
from tuning import cli
from tuning.plan import Plan, Stage, save_plan
from tuning.runs import atomic
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

OLD = {"experiment": "old", "about": {}, "stages": [{"name": "sft", "command": ["run_sft.py"]}]}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An experiment of an older form, which is also the newest, beside one of today."""
    home = use(monkeypatch, tmp_path) / "outputs" / "reports"
    stage = Stage(name="tiny_x", role="sft", hash="a" * 64, phases=("train",), task="math")
    save_plan(home / "mine", Plan(experiment="mine", stages=(stage,)))
    atomic.write_json(home / "old" / "plan.json", OLD)
    os.utime(home / "mine" / "plan.json", (1, 1))
    return home


def test_the_newest_experiment_is_the_newest_of_this_version(reports, capsys):
    assert cli.main(["status"]) == 0
    assert "tiny_x" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "report", "cancel"])
def test_an_experiment_of_an_older_form_is_refused_by_name_and_left(reports, command):
    before = {path: path.stat().st_mtime_ns for path in reports.rglob("*")}
    with pytest.raises(UserError, match="experiment 'old' was made by another version of tuning"):
        cli.main([command, "old"])
    assert {path: path.stat().st_mtime_ns for path in reports.rglob("*")} == before


def test_an_unknown_experiment_names_the_nearest(reports):
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        cli.main(["status", "mime"])
