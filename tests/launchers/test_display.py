"""What a person reads while a plan runs, in a log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tuning.launchers import display
from tuning.launchers.display import Display
from tuning.plan import Plan, Stage
from tuning.runs import atomic

pytestmark = pytest.mark.unit

WORK = Stage(name="sft", role="sft", hash="a", script="run_sft.py", phases=("train",))
ROW = Stage(name="row", role="base", hash="b")


@dataclass
class Entry:
    stage: Stage
    progress: Path


@pytest.fixture
def shown() -> Display:
    return Display(Plan(experiment="trial", stages=(WORK, ROW)))


@pytest.mark.parametrize(
    ("state", "reason", "seconds", "line"),
    [
        ("done", "", 12.34, "  12.3 s     done  sft\n"),
        ("failed", "disk full", 1.0, "   1.0 s   failed  sft: disk full\n"),
        ("skipped", "met by the base, 1.9", None, "          skipped  sft: met by the base, 1.9\n"),
        ("done", "", None, ""),
    ],
)
def test_a_stage_that_ends_is_a_line(shown, capsys, state, reason, seconds, line):
    shown.ended(WORK, state, reason, seconds)
    assert capsys.readouterr().err == line


def test_a_row_without_a_command_is_no_news(shown, capsys):
    shown.ended(ROW, "done", "", None)
    assert capsys.readouterr().err == ""


def test_progress_comes_now_and_then(shown, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(display, "LOG_SECONDS", 0.0)
    entry = Entry(WORK, tmp_path / "sft.json")
    shown.refresh([entry])
    told = {"phase": "train", "at": 5, "of": 10, "note": "loss 1.2"}
    atomic.write_json(tmp_path / "sft.json", told)
    shown.refresh([entry])
    shown.ended(WORK, "done", "", 1.0)
    capsys.readouterr()
    shown.refresh([])
    assert capsys.readouterr().err == ""
    shown.refresh([entry])
    assert capsys.readouterr().err == "[1/1] sft train 5/10 loss 1.2\n"


def test_waiting_for_another_is_said_once(shown, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(display, "LOG_SECONDS", 0.0)
    told = {"phase": "waiting", "at": 0, "of": 0, "note": "sft: in use by process 3; waiting"}
    atomic.write_json(tmp_path / "sft.json", told)
    for _ in range(2):
        shown.refresh([Entry(WORK, tmp_path / "sft.json")])
    assert capsys.readouterr().err.splitlines() == [
        "sft: in use by process 3; waiting",
        "[0/1] sft waiting",
        "[0/1] sft waiting",
    ]
