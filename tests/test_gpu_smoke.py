"""benchmarks/gpu_smoke.py without a GPU: what becomes of steps that end in all kinds of ways, and
its cheapest ones for real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_checks import command, rows, runner
from benchmarks.gpu_checks.runner import Command, Report
from benchmarks.gpu_checks.site import Context, Failed
from benchmarks.gpu_checks.steps import FIRST, STEPS, Step
from tests.conftest import run_script
from tuning.config import CHECKOUT

WRITES = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from benchmarks.gpu_checks import rows
rows.append(Path(sys.argv[1]), rows.row("a step", "before", rows.OK, "it began"))
"""
ENDS = {
    "well": ("", None, ""),
    "hangs": ("import time; print('waits'); sys.stdout.flush(); time.sleep(60)",
              rows.LIMIT, "ended after 3 s; its last words: waits"),
    "raises": ("raise ValueError('a bad number')",
               rows.CRASHED, "exit code 1: ValueError: a bad number"),
    "is killed": ("import os; os.kill(os.getpid(), 11)",
                  rows.CRASHED, "by SIGSEGV; its last words: none"),
    "has no memory": ("raise MemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
                      rows.MEMORY, "MemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
}  # fmt: skip


def carried_out(folder: Path, *commands: Command, budget: float = 60) -> Report:
    """The report of some commands."""
    report = Report(folder / "found.json", {})
    runner.carry_out(commands, budget, folder, os.environ, report)
    return report


def python(code: str, limit: float = 30.0) -> Command:
    """A step that is some lines of Python."""
    return Command(name="a step", words=[sys.executable, "-c", code], limit=limit)


@pytest.mark.unit
@pytest.mark.parametrize("end", ENDS)
def test_how_a_step_ends_is_a_row_after_those_that_it_found(tmp_path: Path, end: str) -> None:
    code, status, says = ENDS[end]
    limit = 3 if end == "hangs" else 30
    report = carried_out(tmp_path, python(WRITES.format(root=str(CHECKOUT)) + code, limit))
    first, *more = report.rows
    assert (first["what"], first["status"]) == ("before", rows.OK)
    assert [(row["status"], row["says"]) for row in more] == ([(status, says)] if status else [])
    assert report.well == (status is None)
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == report.rows


@pytest.mark.unit
def test_a_step_that_finds_nothing_is_told(tmp_path: Path) -> None:
    (row,) = carried_out(tmp_path, python("pass")).rows
    assert (row["status"], row["says"]) == (rows.CRASHED, "ended without a row")


@pytest.mark.unit
def test_nothing_that_a_step_has_started_is_left(tmp_path: Path) -> None:
    child = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    words = [sys.executable, "-c", child, str(tmp_path / "child")]
    carried_out(tmp_path, python(f"import subprocess; subprocess.run({words})", limit=3))
    path = Path("/proc", (tmp_path / "child").read_text(), "stat")
    for _ in range(100):
        if not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child of a step outlives it")


@pytest.mark.unit
def test_a_step_whose_limit_is_not_left_is_skipped(tmp_path: Path) -> None:
    (row,) = carried_out(tmp_path, python("pass", limit=90), budget=60).rows
    assert row["status"] == rows.SKIPPED
    assert row["says"] == "may take 90 s, and 60 s of the budget are left"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("step", "says"),
    [
        (Step(name="x", runs="a:b", limit=1, packages=("json", "no_such_package")),
         "needs no_such_package, which is not installed"),
        (Step(name="x", runs="a:b", limit=1, needs="smoke"),
         "needs the model that the step base makes (smoke)"),
    ],
    ids=["package", "model"],
)  # fmt: skip
def test_a_step_that_cannot_run_says_why(tmp_path: Path, step: Step, says: str) -> None:
    assert command.one(step, Context(step.name, "cpu", tmp_path, tmp_path / "rows")) == 0
    (row,) = rows.read(tmp_path / "rows")
    assert (row["status"], row["says"]) == (rows.SKIPPED, says)


@pytest.mark.unit
def test_an_entry_point_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    context = Context("x", "cpu", tmp_path, tmp_path / "rows")
    with pytest.raises(Failed, match=r"run_sft\.py ended with exit code 2: error: .*--model"):
        context.entry("run_sft.py")


@pytest.mark.unit
def test_a_step_that_compares_with_sft_says_what_to_name_without_it(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="the run of the step sft; name that too") as raised:
        Context("x", "cpu", tmp_path, tmp_path / "rows").run_of_sft()
    assert raised.value.status == rows.SKIPPED


@pytest.mark.unit
def test_each_of_the_first_steps_has_its_turn() -> None:
    """Whatever the others take; some seconds are for finding out whether there is a GPU."""
    assert sum(step.limit for step in FIRST) <= command.BUDGET - 10
    assert command.BUDGET <= 8 * 60
    assert all(step.limit <= command.BUDGET for step in STEPS.values())


@pytest.mark.unit
def test_a_step_brings_the_one_that_makes_its_model() -> None:
    assert [step.name for step in command._asked(["dpo", "machine"])] == ["machine", "base", "dpo"]
    assert [step.name for step in command._asked(None)] == list(STEPS)


def smoke(home: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """The command as it is given."""
    return run_script(home, CHECKOUT / "benchmarks" / "gpu_smoke.py", *flags, cwd=CHECKOUT)


def test_the_cheapest_steps_at_the_small_size(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    done = smoke(home, "--device", "cpu", "--output", output, "--steps", "machine", "attention")
    found = json.loads(output.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["complete"]
    assert {row["step"] for row in found["rows"]} == {"machine", "attention"}
    assert all(row["status"] == rows.OK for row in found["rows"])
    assert all(row["says"].split()[0] in done.stdout for row in found["rows"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(home: Path) -> None:
    done = smoke(home)
    assert done.returncode == 0
    assert done.stdout.startswith("torch finds no GPU; --device cpu ")


def test_a_folder_with_something_in_it_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = smoke(home, "--device", "cpu", "--folder", tmp_path)
    assert done.returncode == 2
    assert "is not an empty folder" in done.stderr
