"""Pre-training that was stopped and killed ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.conftest import check, environment, run_entry, start_entry, torchrun
from tests.warm import Process
from tuning.config import PACKAGE
from tuning.runs import manifest

TINY = ("--model", "tiny")


def start_until(home: Path, step: int, anew: bool) -> Process:
    """Pre-training in the background, once it has done `step` steps."""
    process = start_entry(home, "run_pretrain.py", *TINY, "--save_every_steps", "20", anew=anew)
    told = home / "models/tiny/progress.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if told.exists() and json.loads(told.read_text())["at"] >= step:
            return process
        time.sleep(0.02)
    pytest.fail(f"pre-training did not reach step {step}: exit code {process.poll()}")


def test_stopped_and_killed_is_straight(trained_home: Path, home: Path) -> None:
    stopped = start_until(home, 25, anew=True)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=60) == 75
    assert manifest.newest_whole(home / "models/tiny") is not None

    killed = start_until(home, 70, anew=False)
    killed.kill()
    killed.wait(timeout=60)

    check(run_entry(home, "run_pretrain.py", *TINY))
    weights = Path("models/tiny/model/model.safetensors")
    assert (home / weights).read_bytes() == (trained_home / weights).read_bytes()
    lines = (home / "models/tiny/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert "already trained" in check(run_entry(home, "run_pretrain.py", *TINY)).stdout


def together(home: Path, *flags: str) -> Process:
    """Pre-training by two processes, in the background; stops when TUNING_STOP appears."""
    command = torchrun(2, PACKAGE / "run_pretrain.py", *flags)
    told = {"TUNING_STOP": str(home.parent / "stop"), "TUNING_EXIT": str(home.parent / "exit")}
    return warm.start(command, environment(home) | told, home.parent)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    short = (*TINY, "--max_steps", "5", "--warmup_steps", "4", "--total_batch_size", "2048")
    check(run_entry(tmp_path / "alone", "run_pretrain.py", *short))
    assert together(tmp_path / "two", *short).wait(timeout=120) == 0
    one, two = (
        load_file(next((tmp_path / name).glob("models/*")) / "model/model.safetensors")
        for name in ("alone", "two")
    )
    assert all(torch.allclose(one[name], two[name], atol=1e-5, rtol=0) for name in one)


def test_two_processes_stop_together_and_resume_bit_for_bit(tmp_path: Path) -> None:
    flags = (*TINY, "--max_steps", "20", "--warmup_steps", "4", "--save_every_steps", "5")
    assert together(tmp_path / "straight", *flags).wait(timeout=120) == 0
    home = tmp_path / "stopped"
    first = together(home, *flags)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(home.glob("models/*/progress.json")):
        time.sleep(0.05)
    (tmp_path / "stop").touch()
    assert first.wait(timeout=120) != 0
    assert json.loads((tmp_path / "exit").read_text())["code"] == 75
    (tmp_path / "stop").unlink()
    assert together(home, *flags).wait(timeout=120) == 0
    runs = [next((tmp_path / name).glob("models/*")) for name in ("straight", "stopped")]
    weights = [(run / "model/model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    assert [x["loss"] for x in lines[0]] == [x["loss"] for x in lines[1]]
    assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]]
