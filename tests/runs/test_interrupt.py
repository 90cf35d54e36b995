"""Signals and the death of the parent, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tuning.runs import interrupt
from tuning.runs.errors import Interrupted

pytestmark = pytest.mark.unit

WORKER = """
import os, sys, time
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted
interrupt.install()
print("ready", os.getpid(), flush=True)
for _ in range(200):
    time.sleep(0.05)
    try:
        interrupt.check()
    except Interrupted:
        print("saved", flush=True)
        sys.exit(75)
"""
PARENT = """
import os, subprocess, sys, time
environment = os.environ | {"TUNING_PARENT": str(os.getpid())}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment)
time.sleep(60)
"""


def start(*words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != interrupt.PARENT_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-c", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_answered_at_the_next_safe_point(number):
    worker = start(WORKER)
    assert worker.stdout.readline().startswith("ready")
    worker.send_signal(number)
    output, errors = worker.communicate(timeout=20)
    assert worker.returncode == 75
    assert output == "saved\n"
    assert errors.startswith(f"received {number.name}: saving")
    assert errors.count("\n") == 1


def test_a_second_ctrl_c_stops_at_once():
    stubborn = """
import time
from tuning.runs import interrupt
interrupt.install()
print("ready", flush=True)
for i in range(400):
    time.sleep(0.05)
    if interrupt.asked_to_stop() and i >= 0:
        print("asked", flush=True)
"""
    worker = start(stubborn)
    worker.stdout.readline()
    worker.send_signal(signal.SIGINT)
    assert worker.stdout.readline() == "asked\n"
    worker.send_signal(signal.SIGINT)
    _, errors = worker.communicate(timeout=20)
    assert worker.returncode != 0
    assert "KeyboardInterrupt" in errors


def test_several_signals_ask_once():
    worker = start(WORKER)
    worker.stdout.readline()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        worker.send_signal(number)
    _, errors = worker.communicate(timeout=20)
    assert worker.returncode == 75
    assert errors.count("received SIG") == 1


def test_a_worker_ends_when_its_parent_is_killed():
    parent = start(PARENT, WORKER)
    assert parent.stdout.readline().startswith("ready")
    parent.kill()
    began = time.monotonic()
    output, _ = parent.communicate(timeout=20)
    assert output == "saved\n"
    assert time.monotonic() - began < 10


def test_a_worker_whose_parent_was_gone_before_it_looked_ends_too():
    code = "import os; os.environ['TUNING_PARENT'] = str(2**22 + 1)\n" + WORKER
    worker = start(code)
    output, _ = worker.communicate(timeout=20)
    assert worker.returncode == 75
    assert output.endswith("saved\n")


def test_reset_forgets():
    interrupt.check()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    interrupt.install()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while not interrupt.asked_to_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Interrupted):
            interrupt.check()
    finally:
        interrupt.reset()
        for number, handler in before.items():
            signal.signal(number, handler)
    interrupt.check()


def test_in_a_container_a_file_is_the_request_and_the_parent_is_not_watched(tmp_path, monkeypatch):
    """What starts a process in a container is its parent, and may keep signals for itself."""
    monkeypatch.setenv("TUNING_CONTAINER", "apptainer exec image python3")
    monkeypatch.setenv("TUNING_STOP", str(tmp_path / "stop"))
    code = WORKER.replace("interrupt.install()", 'os.environ["TUNING_PARENT"] = "1"; '
                          "interrupt.install()")  # fmt: skip
    worker = start(code)
    assert worker.stdout.readline().startswith("ready")
    time.sleep(2 * interrupt.POLL_SECONDS)
    assert worker.poll() is None
    (tmp_path / "stop").touch()
    output, _ = worker.communicate(timeout=20)
    assert (worker.returncode, output) == (75, "saved\n")
