"""How a stage is watched: what its end means, and real processes that end in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuning.launchers import supervisor
from tuning.launchers.supervisor import decide, last_line
from tuning.runs.atomic import read_json
from tuning.runs.rundir import Identity, RunDirectory, claim

pytestmark = pytest.mark.unit

TELL = """
import os, sys, time
from pathlib import Path
from tuning.runs.progress import tell
count = Path(sys.argv[1])
attempt = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(attempt))
def progress(at, directory="run"):
    tell(directory=directory, phase="train", at=at, of=10, note="", time=0.0)
"""


ENDS = """
from tuning import entry
from tuning.runs.errors import Skipped, StageFailed
def skip():
    raise Skipped("never reached", "unreached")
def fail():
    import atexit
    atexit.register(print, "some library says good-bye")
    raise StageFailed("the disk is full")
"""


@pytest.mark.parametrize(
    ("code", "asked", "progressed", "out_of_memory", "verdict"),
    [
        (0, False, False, False, "done"),
        (0, True, True, True, "done"),
        (1, False, True, False, "failed"),
        (2, False, True, False, "failed"),
        (2, True, True, False, "failed"),
        (130, False, True, False, "failed"),
        (75, False, True, False, "again"),
        (75, False, False, False, "failed"),
        (75, True, True, False, "stopped"),
        (75, True, False, False, "stopped"),
        (-15, False, True, False, "again"),
        (-15, False, False, False, "failed"),
        (-15, True, False, False, "stopped"),
        (-10, True, False, False, "stopped"),
        (-2, True, False, False, "stopped"),
        (-10, False, False, False, "failed"),
        (-9, False, True, False, "again"),
        (-9, False, False, False, "failed"),
        (-9, False, True, True, "failed"),
        (-9, True, True, True, "failed"),
        (-9, True, True, False, "stopped"),
        (-11, False, True, False, "failed"),
        (-6, True, True, False, "failed"),
    ],
)
def test_what_an_end_means(code, asked, progressed, out_of_memory, verdict):
    found = decide(code, asked=asked, progressed=progressed, out_of_memory=out_of_memory)
    assert found == verdict


class Watched:
    """A supervisor in its own process over a stage of a few lines."""

    def __init__(self, folder: Path, body: str) -> None:
        self.folder = folder
        self.record = folder / "stages" / "stage.json"
        self.log = folder / "logs" / "stage.txt"
        self.count = folder / "count"
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "tuning.launchers.supervisor", "--record", str(self.record),
                "--log", str(self.log), "--", sys.executable, "-c", TELL + body, str(self.count),
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self) -> dict:
        """How the record says it ended, with the exit code of the supervisor beside it."""
        _, errors = self.process.communicate(timeout=30)
        assert errors == ""
        record = read_json(self.record)
        said = {key: record[key] for key in ("state", "code", "reason", "attempts")}
        return said | {"exit": self.process.returncode}

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.log.exists() and text in self.log.read_text():
                return
            time.sleep(0.02)
        pytest.fail(f"no '{text}' in the log")


@pytest.fixture
def watched(tmp_path):
    started: list[Watched] = []

    def start(body: str) -> Watched:
        started.append(Watched(tmp_path, body))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param("print('well')", ("done", 0, "", 1), id="done"),
        pytest.param(
            ENDS + "print('skipped: it is only said')\nentry.run(lambda: 0)",
            ("done", 0, "", 1),
            id="not-skipped",
        ),
        pytest.param(
            ENDS + "entry.run(skip)\nprint('x')", ("skipped", 0, "never reached", 1), id="skipped"
        ),
        pytest.param(
            ENDS + "entry.run(fail)", ("failed", 1, "the disk is full", 1), id="recorded-reason"
        ),
        pytest.param(
            ENDS + "entry.run(fail) if os.fork() == 0 else os.wait()",
            ("done", 0, "", 1),
            id="another-process-failed",
        ),
        pytest.param(
            "print('x')\nprint('error: no such model', file=sys.stderr)\nsys.exit(2)",
            ("failed", 2, "no such model", 1),
            id="the-users-mistake",
        ),
        pytest.param("sys.exit('error: disk full')", ("failed", 1, "disk full", 1), id="failed"),
        pytest.param(
            "progress(1)\nraise ValueError('shapes')",
            ("failed", 1, "ValueError: shapes", 1),
            id="traceback",
        ),
        pytest.param("sys.exit(7)", ("failed", 1, "", 1), id="another-code"),
        pytest.param(
            "progress(attempt)\nsys.exit(75 if attempt < 3 else 0)",
            ("done", 0, "", 3),
            id="again-with-progress",
        ),
        pytest.param(
            "progress(1)\nsys.exit(75)",
            ("failed", 1, "stopped again and again without progress", 2),
            id="again-without-progress",
        ),
        pytest.param(
            "progress(attempt)\nattempt < 2 and os.kill(os.getpid(), 9)",
            ("done", 0, "", 2),
            id="killed-with-progress",
        ),
        pytest.param(
            "progress(1)\nos.kill(os.getpid(), 9)",
            ("failed", 1, "killed by SIGKILL", 2),
            id="killed-without-progress",
        ),
        pytest.param(
            "os.kill(os.getpid(), 9)", ("failed", 1, "killed by SIGKILL", 1), id="killed-at-once"
        ),
        pytest.param(
            "progress(attempt)\nos.kill(os.getpid(), 11)",
            ("failed", 1, "killed by SIGSEGV", 1),
            id="crashed",
        ),
    ],
)
def test_how_a_stage_ends(watched, body, expected):
    one = watched(body)
    found = one.end()
    state, code, reason, attempts = expected
    assert found == {
        "state": state, "code": code, "reason": reason, "attempts": attempts, "exit": code
    }  # fmt: skip
    assert one.count.read_text() == str(attempts)


STOPPABLE = """
from tuning.runs import interrupt
interrupt.install()
print("ready", flush=True)
for at in range(600):
    time.sleep(0.05)
    if interrupt.asked_to_stop():
        print("saved", flush=True)
        sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_stage_not_started_again(watched, number):
    one = watched(STOPPABLE)
    one.wait_for("ready")
    one.process.send_signal(number)
    assert one.end() == {
        "state": "pending", "code": 75, "reason": "stopped on request", "attempts": 1, "exit": 75
    }  # fmt: skip
    assert one.log.read_text().endswith("saved\n")


def test_a_stage_that_is_done_before_it_could_stop_is_done(watched):
    one = watched(STOPPABLE.replace("sys.exit(75)", "sys.exit(0)"))
    one.wait_for("ready")
    one.process.terminate()
    assert (one.end()["state"], one.process.returncode) == ("done", 0)


def test_a_stage_ends_when_its_supervisor_is_killed(watched):
    one = watched(STOPPABLE)
    one.wait_for("ready")
    one.process.kill()
    one.wait_for("saved")


def test_a_stage_ends_when_the_launcher_is_killed(tmp_path):
    launcher = f"""
import os, subprocess, sys, time
environment = os.environ | {{"TUNING_PARENT": str(os.getpid())}}
subprocess.Popen([sys.executable, "-m", "tuning.launchers.supervisor", "--record",
    {str(tmp_path / "r.json")!r}, "--log", {str(tmp_path / "log.txt")!r}, "--",
    sys.executable, "-c", {TELL + STOPPABLE!r}, {str(tmp_path / "count")!r}],
    env=environment, start_new_session=True)
time.sleep(60)
"""
    started = subprocess.Popen([sys.executable, "-c", launcher])
    log = tmp_path / "log.txt"
    try:
        wait(lambda: log.exists() and "ready" in log.read_text())
    finally:
        started.kill()
        started.wait()
    wait(lambda: read_json(tmp_path / "r.json")["state"] != "running")
    assert read_json(tmp_path / "r.json")["state"] == "pending"
    assert "saved" in log.read_text()


def wait(ready, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_killed_stage_is_marked_in_its_directory(watched, tmp_path):
    identity = Identity(run_name="run", kind="x", hash="a", hashed={}, settings={})
    with claim(tmp_path / "models", identity) as directory:
        directory.write_status("running", "", {"train": {"state": "running"}})
    body = f"progress(1, {str(directory.path)!r})\nos.kill(os.getpid(), 11)"
    assert watched(body).end()["reason"] == "killed by SIGSEGV"
    status = RunDirectory(directory.path).status
    assert (status["state"], status["reason"]) == ("failed", "killed by SIGSEGV")


def test_a_directory_that_another_holds_is_left_alone(watched, tmp_path):
    identity = Identity(run_name="run", kind="x", hash="a", hashed={}, settings={})
    with claim(tmp_path / "models", identity) as directory:
        directory.write_status("running")
        body = f"progress(1, {str(directory.path)!r})\nos.kill(os.getpid(), 11)"
        watched(body).end()
        assert directory.status["state"] == "running"


BAR = """
from tqdm import tqdm
from tuning.entry import exit_code
from tuning.runs.errors import StageFailed
def main():
    bar = tqdm(total=10, desc="training", unit="step", mininterval=0)
    bar.update(5)
    raise StageFailed("the disk is full")
sys.exit(exit_code(main))
"""


def test_the_reason_is_not_hidden_by_a_progress_bar(watched):
    assert watched(BAR).end()["reason"] == "the disk is full"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("one", "one"),
        ("one\ntwo\n", "two"),
        ("one\n\n  two  \n\n", "two"),
        ("one\n10%\r20%\rtwo\n", "two"),
        ("x" * 20_000 + "\ntwo\n", "two"),
        ("one\n\xff\n", "\xff"),
    ],
    ids=["empty", "one", "two", "blanks", "bar", "long", "letters"],
)
def test_the_last_line_of_a_log(tmp_path, text, line):
    log = tmp_path / "log.txt"
    log.write_text(text, encoding="utf-8")
    assert last_line(log) == line


def test_a_log_that_is_not_there_or_no_text_does_no_harm(tmp_path):
    assert last_line(tmp_path / "none.txt") == ""
    (tmp_path / "log.txt").write_bytes(b"one\n\xff\xfe\n")
    assert last_line(tmp_path / "log.txt") != ""


def test_the_log_of_every_attempt_is_kept(watched):
    one = watched(
        "print('attempt', attempt)\nprogress(attempt)\nsys.exit(75 if attempt < 2 else 0)"
    )
    one.end()
    assert one.log.read_text() == "attempt 1\nattempt 2\n"


def test_the_stage_knows_its_supervisor_and_where_to_tell(watched):
    body = "import json\nprint(json.dumps([os.getppid(), dict(os.environ)]))"
    one = watched(body)
    one.end()
    parent, environment = json.loads(one.log.read_text())
    assert parent == int(environment["TUNING_PARENT"]) == one.process.pid
    assert environment["TUNING_PROGRESS"] == str(one.record.with_suffix(".progress.json"))
    assert os.environ.get("TUNING_PROGRESS") != environment["TUNING_PROGRESS"]


def test_kills_of_trials_are_no_sign_that_the_stage_ran_out_of_memory(tmp_path, monkeypatch):
    """The kernel's count grows by two, both of them trials; then by one more."""
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    for of_trials, reason in ((2, "killed by SIGKILL"), (1, "out of memory")):
        counts = iter([5, 7])
        monkeypatch.setattr(supervisor, "oom_kills", lambda counts=counts: next(counts))
        body = f"""
from tuning.runs.progress import tell_kills
tell_kills({of_trials})
os.kill(os.getpid(), 9)
"""
        folder = tmp_path / reason
        watched = supervisor.Supervisor(
            [sys.executable, "-c", TELL + body, str(folder / "count")],
            folder / "stages" / "stage.json",
            folder / "logs" / "stage.txt",
        )
        folder.mkdir()
        assert watched.run().reason == reason
