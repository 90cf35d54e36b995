"""A trial process that fails in every way: each is an observation of its own kind, in bounded time,
and nothing of it is left running.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.autotune.searches import candidate, request_of
from tuning.autotune.process import Limits, run_trial
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted
from tuning.runs.lock import process_start
from tuning.runs.memory import is_out_of_memory

FAULTS = Path(__file__).parent / "faults"
CASES = {
    "kill": ("crash", "killed by SIGKILL"),
    "hang": ("hang", "no result within its time"),
    "exit": ("crash", "exit code 1: something went wrong"),
    "nothing": ("garbage", "without a result"),
    "half": ("garbage", "without a result"),
    "garbage": ("garbage", "impossible numbers"),
    "memory": ("oom", "above the limit"),
}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_an_observation(fault, faulty, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNING_TEST_FAULT", fault)
    limits = Limits(seconds=2.0 if fault == "hang" else 60.0, host_bytes=512 << 20)
    began = time.monotonic()
    found = run_trial(request_of(), candidate(), tmp_path / "trial", limits).checked()
    outcome, note = CASES[fault]
    assert (found.outcome, found.candidate) == (outcome, candidate())
    assert note in found.note
    assert time.monotonic() - began < 50


def test_nothing_is_left_of_a_trial_not_even_in_a_session_of_its_own(faulty, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNING_TEST_FAULT", "child")
    limits = Limits(seconds=3.0, host_bytes=1 << 34)
    assert run_trial(request_of(), candidate(), tmp_path / "trial", limits).outcome == "hang"
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not process_start(child))


def test_a_request_to_stop_ends_the_trial(faulty, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNING_TEST_FAULT", "hang")
    limits = Limits(seconds=60, host_bytes=1 << 34)
    began = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            run_trial(request_of(), candidate(), tmp_path / "trial", limits, interrupt.ask_to_stop)
    finally:
        interrupt.reset()
    assert time.monotonic() - began < 20


def test_a_trial_ends_with_the_process_that_started_it(tmp_path):
    """Which is killed, so that it can end nothing itself."""
    program = f"""
import subprocess, sys, os, time
from pathlib import Path
from tests.autotune.searches import request_of
from tuning.autotune.trial import request_json
from tuning.runs import atomic
atomic.write_json(Path({str(tmp_path / "request.json")!r}), request_json(request_of(os.getpid())))
code = '''
import os, time
from pathlib import Path
from tuning.autotune import trial
trial._end_with(int(os.environ["STARTER"]))
Path({str(tmp_path / "up")!r}).write_text(str(os.getpid()))
time.sleep(3600)
'''
subprocess.run([sys.executable, "-c", code], env=os.environ | {{"STARTER": str(os.getpid())}})
"""
    starter = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text(), 60)
        trial = int((tmp_path / "up").read_text())
        assert process_start(trial)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        wait_until(lambda: not process_start(trial))
    finally:
        starter.kill()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("ncclUnhandledCudaError: Call to CUDA function failed. Cuda failure 2 'out of memory'",
         True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("MemoryError", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("ValueError: the memory of the model is full of holes", False),
        ("RuntimeError: CUDA error: device-side assert triggered", False),
    ],
)  # fmt: skip
def test_out_of_memory_is_recognised_whoever_says_it(text, expected):
    assert is_out_of_memory(text) == expected


def wait_until(holds, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)
