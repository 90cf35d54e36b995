"""Ctrl-C where nothing is trained: viewers are quiet, questions say that nothing was submitted."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import environment
from tuning.config import CHECKOUT, PACKAGE
from tuning.plan import Plan, Stage, save_plan

TUNING = (sys.executable, "-m", "tuning.cli")


@pytest.fixture
def watched(home: Path) -> Path:
    """A home with an experiment that never ends, and the log of its stage."""
    stage = Stage(name="a-run", role="sft", hash="0" * 64, script="run_sft.py", phases=("train",))
    folder = home / "outputs" / "reports" / "trial"
    save_plan(folder, Plan(experiment="trial", stages=(stage,)))
    (folder / "logs").mkdir()
    (folder / "logs" / "a-run.txt").write_text("step 1\n")
    return home


def interrupted(
    home: Path, words: Sequence[str], sign: str, **variables: str
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that gets SIGINT once it has printed `sign`."""
    process = subprocess.Popen(
        words, env=_environment(home, variables), cwd=home, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    seen = {process.stdout.fileno(): "", process.stderr.fileno(): ""}
    try:
        while not any(sign in text for text in seen.values()):
            _read_more(seen)
        process.send_signal(signal.SIGINT)
        out, errors = (part.decode() for part in process.communicate(timeout=60))
    finally:
        process.kill()
    before = list(seen.values())
    return process.returncode, before[0] + out, before[1] + errors


def _environment(home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    kept = environment(home) | {"PYTHONPATH": str(CHECKOUT), "PYTHON": sys.executable}
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(variables)


def _read_more(seen: dict[int, str]) -> None:
    ready = select.select(list(seen), [], [], 60)[0]
    assert ready, f"nothing more came after {seen}"
    for number in ready:
        text = os.read(number, 4096).decode()
        assert text or number != next(iter(seen)), f"it ended: {seen}"
        seen[number] += text


@pytest.mark.parametrize(
    ("words", "sign"),
    [(("status", "--watch"), "a-run"), (("logs", "a-run", "-f"), "step 1")],
    ids=["status", "logs"],
)
def test_a_viewer_ends_quietly(watched: Path, words: tuple[str, ...], sign: str) -> None:
    code, out, errors = interrupted(watched, (*TUNING, *words), sign)
    assert code == 130
    assert "stopped" not in out + errors and "checkpoint" not in out + errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "words",
    [("bash", str(CHECKOUT / "slurm" / "run.sh")), (*TUNING, "submit", "--prompt")],
    ids=["run.sh", "submit"],
)
def test_a_question_says_that_nothing_was_submitted(home: Path, words: tuple[str, ...]) -> None:
    code, _, errors = interrupted(home, words, "Select task:")
    assert code == 130
    assert errors.rpartition("Select task:")[2].strip() == "stopped; nothing was submitted"
    assert list(home.iterdir()) == []


def test_a_file_that_is_written_whole_is_not_there(home: Path, tmp_path: Path) -> None:
    """The pool is a pipe that nobody fills, so that the program stands while it reads."""
    pool, output = tmp_path / "pool.jsonl", tmp_path / "rows.jsonl"
    os.mkfifo(pool)
    sites = tmp_path / "collections.yaml"
    sites.write_text(
        "tasks: {math: {datasets: [mine]}}\n"
        f"datasets: {{mine: {{loader: jsonl, sft: {pool}}}}}\n"
        "sft_ratio: [0.5]\npft_methods: [dpo]\nmodels: {tiny: {from_run: tiny}}\n"
    )
    words = (
        sys.executable, "-X", "importtime", str(PACKAGE / "run_tokenize.py"), "--model", "tiny",
        "--dataset", "mine", "--task", "math", "--output", str(output),
    )  # fmt: skip
    code, _, errors = interrupted(home, words, "tuning.data.jsonl", TUNING_COLLECTIONS=str(sites))
    assert code == 130
    assert errors.splitlines()[-1] == "stopped; nothing was written"
    assert not output.exists()
