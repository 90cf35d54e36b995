"""Pre-training that was stopped and killed ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import check, environment, run_entry
from tuning.config import PACKAGE
from tuning.runs import manifest


def start_until(home: Path, step: int) -> subprocess.Popen[bytes]:
    """Pre-training in the background, once it has done `step` steps."""
    process = subprocess.Popen(
        [sys.executable, str(PACKAGE / "run_pretrain.py"), "--save_steps", "20"],
        env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    told = home / "models/tiny/progress.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if told.exists() and json.loads(told.read_text())["at"] >= step:
            return process
        time.sleep(0.02)
    pytest.fail(f"pre-training did not reach step {step}: exit code {process.poll()}")


def test_stopped_and_killed_is_straight(trained_home: Path, home: Path) -> None:
    stopped = start_until(home, 25)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=60) == 75
    assert manifest.newest_whole(home / "models/tiny") is not None

    killed = start_until(home, 70)
    killed.kill()
    killed.wait(timeout=60)

    check(run_entry(home, "run_pretrain.py"))
    weights = Path("models/tiny/model/model.safetensors")
    assert (home / weights).read_bytes() == (trained_home / weights).read_bytes()
    lines = (home / "models/tiny/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert "already trained" in check(run_entry(home, "run_pretrain.py")).stdout
