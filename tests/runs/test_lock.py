"""One writer a run directory: real processes that hold, wait, die and race."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuning.runs import lock
from tuning.runs.errors import Interrupted, StageFailed
from tuning.runs.lock import Lock
from tuning.runs.rundir import Identity, claim

pytestmark = pytest.mark.unit

HOLD = """
import sys, time
from pathlib import Path
from tuning.runs import log
from tuning.runs.lock import Lock
from tuning.runs.rundir import Identity, claim
log.configure()
with Lock(Path(sys.argv[1])).holding(poll_seconds=0.05):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
RACE = """
import os, sys, time
from pathlib import Path
from tuning.runs.lock import Lock
from tuning.runs.rundir import Identity, claim
run = Path(sys.argv[1])
for _ in range(50):
    with Lock(run).holding(poll_seconds=0.001):
        os.close(os.open(run / "inside", os.O_CREAT | os.O_EXCL))
        time.sleep(0.001)
        (run / "inside").unlink()
print("well")
"""


@contextlib.contextmanager
def process(code: str, run: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def write_holder(run: Path, **changes) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": lock.process_start(os.getpid()),
        "job": None,
        "heartbeat": time.time(),
    }
    run.mkdir(exist_ok=True)
    (run / "lock.json").write_text(json.dumps(holder | changes))


def take(run: Path, seconds: float = 10.0) -> float:
    """Take the lock and give it back; the seconds that it took to get it."""
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > seconds:
            raise TimeoutError

    with Lock(run).holding(poll_seconds=0.02, check=check):
        return time.monotonic() - began


def test_the_lock_names_its_holder_while_it_is_held(tmp_path):
    run = tmp_path / "run"
    with Lock(run).holding():
        holder = Lock(run).holder()
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        assert holder.started == lock.process_start(os.getpid()) != ""
        assert str(holder) == f"process {os.getpid()} on {socket.gethostname()}"
    assert Lock(run).holder() is None
    assert not (run / "lock.json").exists()


def test_the_lock_is_given_back_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), Lock(tmp_path).holding():
        raise ZeroDivisionError
    assert take(tmp_path) < 5


def test_a_second_process_waits_and_then_gets_it(tmp_path):
    with process(HOLD, tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with process(HOLD, tmp_path) as second:
            assert "in use by" in second.stdout.readline()
            assert Lock(tmp_path).holder().pid == first.pid
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.stdout.readline() == "released\n"
            assert second.stdout.readline() == "held\n"
            assert Lock(tmp_path).holder().pid == second.pid


def test_who_waits_says_for_whom_once(tmp_path, said):
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise Interrupted

    with process(HOLD, tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        waiting = Lock(tmp_path).holding(check=check, poll_seconds=0.01)
        with pytest.raises(Interrupted), waiting:
            pytest.fail("two hold the lock")
        assert Lock(tmp_path).holder().pid == first.pid
    assert said == [
        f"{tmp_path.name}: in use by process {first.pid} on {socket.gethostname()}; waiting for it"
    ]


def test_without_waiting_it_raises_and_names_the_holder(tmp_path):
    with process(HOLD, tmp_path) as first:
        first.stdout.readline()
        with (
            pytest.raises(StageFailed, match=f"in use by process {first.pid} on"),
            Lock(tmp_path).holding(wait=False),
        ):
            pytest.fail("two hold the lock")


def test_a_killed_holder_is_stale_at_once(tmp_path):
    with process(HOLD, tmp_path) as first:
        first.stdout.readline()
        first.kill()
        first.wait()
        assert (tmp_path / "lock.json").exists()
        assert Lock(tmp_path).holder() is None
        assert take(tmp_path) < 5


def test_a_killed_holder_that_nobody_waited_for_is_stale(tmp_path):
    """A zombie still has its number, and holds nothing."""
    with process(HOLD, tmp_path) as first:
        first.stdout.readline()
        first.kill()
        deadline = time.monotonic() + 10
        while Lock(tmp_path).holder() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert Lock(tmp_path).holder() is None


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({}, False),
        ({"heartbeat": 0.0}, False),
        ({"started": "1"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"host": "elsewhere", "pid": 1}, False),
        ({"host": "elsewhere", "pid": 1, "heartbeat": -60.0}, False),
        ({"host": "elsewhere", "pid": 1, "heartbeat": -300.0}, True),
        ({"host": "elsewhere", "pid": 1, "job": "7"}, False),
        ({"host": "elsewhere", "pid": 1, "job": "7", "heartbeat": 0.0}, True),
    ],
    ids=[
        "living", "living-without-a-beat", "reused-number", "no-such-process", "elsewhere",
        "elsewhere-a-minute-ago", "elsewhere-five-minutes-ago", "a-job", "a-job-without-a-beat",
    ],
)  # fmt: skip
def test_when_a_holder_is_stale(tmp_path, monkeypatch, changes, stale):
    monkeypatch.setenv("PATH", "")
    if changes.get("heartbeat", 0.0) < 0:
        changes = changes | {"heartbeat": time.time() + changes["heartbeat"]}
    write_holder(tmp_path, **changes)
    assert (Lock(tmp_path).holder() is None) == stale


UNKNOWN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


@pytest.mark.parametrize(
    ("answer", "owner", "stale"),
    [
        ("echo RUNNING", "ours", False),
        ("echo SUSPENDED", "ours", False),
        ("echo PENDING", "ours", True),
        ("echo CANCELLED", "ours", True),
        ("true", "ours", True),
        (UNKNOWN, "ours", True),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "ours", False),
        ("echo RUNNING", "theirs", False),
        ("echo CANCELLED", "theirs", True),
        ("true", "theirs", False),
        (UNKNOWN, "theirs", False),
    ],
)
def test_a_job_is_asked_after(tmp_path, monkeypatch, answer, owner, stale):
    """A script stands for squeue, which this machine need not have, and may hide others' jobs."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{answer}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    write_holder(tmp_path / "run", host="elsewhere", pid=1, job="7")
    if owner == "theirs":
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert (Lock(tmp_path / "run").holder() is None) == stale
    if owner == "theirs":
        write_holder(tmp_path / "run", host="elsewhere", pid=1, job="7", heartbeat=0.0)
        assert Lock(tmp_path / "run").holder() is None


@pytest.mark.parametrize("content", ["", "{", "{}", '{"host": "x"}', "[]", "null"])
def test_a_damaged_lock_holds_nobody_up(tmp_path, content):
    (tmp_path / "lock.json").write_text(content)
    assert take(tmp_path) < 5


def beats(held: Lock) -> bool:
    """Whether the heartbeat of a lock that is held moves."""
    first = held.holder().heartbeat
    deadline = time.monotonic() + 2
    while held.holder().heartbeat == first and time.monotonic() < deadline:
        time.sleep(0.02)
    return held.holder().heartbeat > first


def test_the_heart_beats_while_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    held = Lock(tmp_path)
    with held.holding():
        assert beats(held)
    time.sleep(0.15)
    assert not (tmp_path / "lock.json").exists()


def test_the_heart_beats_again_when_the_lock_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    held = Lock(tmp_path)
    for _ in range(2):
        with held.holding():
            assert beats(held)


SILENT = """
import sys
from pathlib import Path
from tuning.runs import lock
lock.HEARTBEAT_SECONDS = float(sys.argv[2])
with lock.Lock(Path(sys.argv[1])).holding():
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.mark.parametrize("beats_every", [0.05, 60], ids=["at-its-next-beat", "as-it-ends"])
def test_a_holder_that_was_taken_for_dead_leaves_the_new_one_alone(tmp_path, beats_every):
    """As when a host stood still for minutes and comes back after another took over."""
    code = SILENT.replace("float(sys.argv[2])", str(beats_every))
    with process(code, tmp_path) as old:
        assert old.stdout.readline() == "held\n"
        new = json.dumps(json.loads((tmp_path / "lock.json").read_text()) | {"host": "elsewhere"})
        (tmp_path / "new.json").write_text(new)
        (tmp_path / "new.json").rename(tmp_path / "lock.json")
        if beats_every < 1:
            assert old.wait(timeout=10) != 0
        else:
            old.communicate("\n", timeout=10)
        assert (tmp_path / "lock.json").read_text() == new


def test_two_that_race_never_hold_it_together(tmp_path):
    with process(RACE, tmp_path) as first, process(RACE, tmp_path) as second:
        outputs = [p.communicate(timeout=60)[0] for p in (first, second)]
    assert outputs == ["well\n", "well\n"]


def test_two_that_race_for_a_stale_lock_never_hold_it_together(tmp_path):
    for _ in range(5):
        write_holder(tmp_path, started="1")
        with process(RACE.replace("50", "3"), tmp_path) as first:
            assert take(tmp_path) < 10
            assert first.communicate(timeout=30)[0] == "well\n"


STRICT = """
import sys, time
from pathlib import Path
from tuning.runs import interrupt, lock, log
log.configure()
lock.HEARTBEAT_SECONDS, lock.STALE_SECONDS = 0.05, float(sys.argv[2])
with lock.Lock(Path(sys.argv[1])).holding():
    print("held", flush=True)
    while not interrupt.asked_to_stop() or sys.argv[3] == "deaf":
        time.sleep(0.01)
    print("saves", flush=True)
    sys.exit(75)
"""


@contextlib.contextmanager
def strict(run: Path, stale: float, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", STRICT, str(run), str(stale), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as started:  # fmt: skip
        assert started.stdout.readline() == "held\n"
        try:
            yield started
        finally:
            started.kill()


@contextlib.contextmanager
def refusing(run: Path) -> Iterator[None]:
    """A folder where the guard was: it cannot be opened, as on a file system that went away."""
    (run / ".lock").rename(run / ".away")
    (run / ".lock").mkdir()
    yield
    (run / ".lock").rmdir()
    (run / ".away").rename(run / ".lock")


def test_a_heart_that_missed_beats_goes_on(tmp_path):
    with strict(tmp_path, 60, "listens") as holder:
        with refusing(tmp_path):
            time.sleep(0.3)
        assert beats(Lock(tmp_path))
        assert holder.poll() is None


def test_a_holder_whose_heart_cannot_beat_saves_before_others_take_over(tmp_path):
    with strict(tmp_path, 2, "listens") as holder, refusing(tmp_path):
        assert holder.wait(timeout=10) == 75
        assert holder.stdout.read() == "saves\n"
        assert "cannot be renewed; saving before others take over" in holder.stderr.read()


def test_a_holder_that_cannot_save_in_time_ends(tmp_path):
    with strict(tmp_path, 1, "deaf") as holder, refusing(tmp_path):
        began = time.monotonic()
        assert holder.wait(timeout=10) == 75
        assert time.monotonic() - began < 5
        assert "its lock could not be renewed" in holder.stderr.read()


def test_a_file_system_without_locks_is_named_and_keeps_no_empty_run(tmp_path, monkeypatch):
    """A function stands for a file system that has no flock, which this machine need not have."""

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    identity = Identity(run_name="run", kind="sft", hash="a" * 64, hashed={}, settings={})
    with pytest.raises(OSError, match="cannot lock") as caught, claim(tmp_path, identity):
        pytest.fail("nobody holds it")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOLCK, f"{tmp_path}/run/.lock")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_written_is_not_left_empty(tmp_path):
    """Files may have 200 bytes: a lock fits, its config does not."""
    identity = Identity(run_name="run", kind="sft", hash="a" * 64, hashed={}, settings={"x": "y"})
    code = LIMITED.format(root=str(tmp_path), identity=identity)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "27\n", done.stderr
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, signal
from pathlib import Path
from tuning.runs.rundir import Identity, claim
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    with claim(Path({root!r}), {identity!r}):
        print("claimed")
except OSError as error:
    print(error.errno)
"""
