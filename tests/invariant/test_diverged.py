"""A training whose loss or gradient is no number ends there, whichever trainer it has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conftest import run_entry
from tuning.runs.rundir import RunDirectory


@pytest.mark.parametrize("trainer", ["trl", "engine"])
def test_it_ends_at_the_first_number_that_is_none(tiny_home: Path, trainer: str):
    """There is nothing to evaluate, and what was logged and saved is from before."""
    data = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", "64")
    broken = ("--learning_rate", "1e30", "--lr_scheduler", "constant", "--save_steps", "1")
    phases = ("--do_training", "--do_inference", "--do_evaluation")
    result = run_entry(tiny_home, "run_sft.py", *data, "--trainer", trainer, *broken, *phases)
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(said) == 1 and "diverged" in said[0], result.stderr
    (run,) = map(RunDirectory, tiny_home.glob("models/tiny_sft-*"))
    assert not run.done("train") and not any(tiny_home.glob("outputs/*/tiny_sft-*/responses.jsonl"))
    logged = [line for line in run.metrics() if "loss" in line]
    assert logged and all(math.isfinite(line["loss"]) for line in logged)
    steps = [int(path.name.rpartition("-")[2]) for path in run.path.glob("checkpoint-[0-9]*")]
    assert max(steps) == logged[-1]["step"]
