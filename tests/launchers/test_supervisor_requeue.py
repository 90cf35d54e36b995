"""The supervisor where a stage is not started again in its place but goes back into a queue.

A host that notes what it is asked stands for a SLURM job; the stages are real processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tuning.config import CHECKOUT
from tuning.launchers.supervisor import PASSED_ON, Ending, Supervisor
from tuning.runs.atomic import read_json
from tuning.runs.interrupt import PARENT_VARIABLE

pytestmark = pytest.mark.unit

STAGE = """
import os, sys, time
from pathlib import Path
from tuning.runs.progress import tell
count = Path(sys.argv[1])
attempt = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(attempt))
def progress(at, phase="train"):
    tell(directory="run", phase=phase, at=at, of=10, note="", time=0.0)
"""


class Queue:
    """A place to which stages come back later; `takes` says whether it has a queue at all."""

    starts_again = False

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.asked: list[str] = []
        self.watched = 0

    def watch(self) -> None:
        """Count the looks."""
        self.watched += 1

    def requeue(self, why: str, record: Callable[[str], None]) -> bool:
        """Note why."""
        self.asked.append(why)
        if self.takes:
            record(why)
        return self.takes


class Job:
    """Runs a stage again and again, as the starts of one SLURM job would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue = Queue()
        self.record = folder / "stages" / "stage.json"
        self.log = folder / "logs" / "stage.txt"
        self._starts = 0

    def start(self, body: str, *, joined: bool = False, continues: bool | None = None) -> Ending:
        """One start of the job; `body` is what the stage does."""
        self._starts += 1
        return self.supervisor(body, joined=joined, continues=continues).run()

    def supervisor(
        self, body: str, *, joined: bool = False, continues: bool | None = None
    ) -> Supervisor:
        """What such a start runs."""
        return Supervisor(
            [sys.executable, "-c", STAGE + body, str(self.folder / "count")],
            self.record, self.log, self.folder / "stages" / "slurm" / "stage.json",
            host=self.queue, joined=joined,
            continues=self._starts > 1 if continues is None else continues,
        )  # fmt: skip

    @property
    def told(self) -> dict:
        """The record."""
        return read_json(self.record)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals as they were, and stages that find this code."""
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param("progress(1)\nsys.exit(75)", "saved", id="saved"),
        pytest.param("progress(1)\nos.kill(os.getpid(), 9)", "killed by SIGKILL", id="SIGKILL"),
        pytest.param("progress(1)\nos.kill(os.getpid(), 15)", "killed by SIGTERM", id="SIGTERM"),
    ],
)
def test_a_stage_that_is_to_go_on_is_put_back_into_the_queue(job, body, why):
    ending = job.start(body)
    assert (ending.state, ending.code) == ("pending", 75)
    assert job.queue.asked == [why]
    assert job.told == {
        "state": "pending", "code": 75, "reason": why, "attempts": 1, "idle": 0,
        "furthest": {"run:train": 1}, "job": None, "signal": "",
    }  # fmt: skip
    assert (job.folder / "count").read_text() == "1"


@pytest.mark.parametrize(
    ("body", "state", "reason"),
    [
        ("print('well')", "done", ""),
        (
            "from tuning import entry\nfrom tuning.runs.errors import Skipped\n"
            "def main(): raise Skipped('never reached', 'unreached')\nentry.run(main)",
            "skipped",
            "never reached",
        ),
        ("progress(1)\nsys.exit('error: no such model')", "failed", "no such model"),
        ("progress(1)\nos.kill(os.getpid(), 11)", "failed", "killed by SIGSEGV"),
        ("sys.exit(75)", "failed", "stopped again and again without progress"),
        ("os.kill(os.getpid(), 9)", "failed", "killed by SIGKILL"),
    ],
)
def test_a_stage_that_has_ended_is_not(job, body, state, reason):
    ending = job.start(body)
    assert (ending.state, ending.reason) == (state, reason)
    assert job.queue.asked == []
    assert (job.told["state"], job.told["reason"]) == (state, reason)


def test_counts_and_progress_go_from_one_start_to_the_next(job):
    job.start("progress(2)\nsys.exit(75)")
    job.start("progress(5)\nprogress(7)\nsys.exit(75)")
    assert job.told["attempts"] == 2
    assert job.told["furthest"] == {"run:train": 7}
    job.start("progress(1, 'infer')\nsys.exit(75)")
    assert (job.told["attempts"], job.told["idle"]) == (3, 0)
    assert job.told["furthest"] == {"run:train": 7, "run:infer": 1}
    assert job.start("pass").state == "done"


def test_steps_that_are_done_again_are_no_progress(job):
    assert job.start("progress(5)\nsys.exit(75)").code == 75
    ending = job.start("progress(3)\nprogress(5)\nsys.exit(75)")
    assert (ending.state, ending.reason) == ("failed", "stopped again and again without progress")
    assert len(job.queue.asked) == 1


def test_a_job_that_is_submitted_anew_knows_nothing_of_the_last_one(job):
    job.start("progress(5)\nsys.exit(75)")
    assert job.start("progress(1)\nsys.exit(75)", continues=False).code == 75
    assert (job.told["attempts"], job.told["furthest"]) == (1, {"run:train": 1})


WAITS = """
from tuning.runs import interrupt
interrupt.install()
print("ready", flush=True)
for _ in range(600):
    time.sleep(0.02)
    if interrupt.asked_to_stop():
        print("saved", flush=True)
        sys.exit(75)
"""


def when_ready(log: Path, number: int, times: int = 1) -> None:
    """Send this process a signal as soon as the stage has said `ready` so often."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if log.exists() and log.read_text().count("ready") >= times:
                os.kill(os.getpid(), number)
                return
            time.sleep(0.01)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_asked_to_stop_saves_and_comes_back(job, number):
    when_ready(job.log, number)
    ending = job.start("progress(1)" + WAITS)
    assert (ending.state, ending.code) == ("pending", 75)
    assert job.queue.asked == [f"received {signal.Signals(number).name}"]
    assert job.log.read_text().endswith("saved\n")


def test_two_starts_that_lead_nowhere_are_the_last(job):
    """A time limit that is shorter than a step would cost places in the queue for ever."""
    when_ready(job.log, signal.SIGUSR1)
    assert job.start(WAITS).code == 75
    assert job.told["idle"] == 1
    when_ready(job.log, signal.SIGUSR1, times=2)
    ending = job.start(WAITS)
    assert (ending.state, ending.code) == ("failed", 1)
    assert ending.reason == "stopped again and again without progress"
    assert len(job.queue.asked) == 1


def test_one_start_that_leads_nowhere_is_forgiven(job):
    when_ready(job.log, signal.SIGUSR1)
    job.start("progress(1)" + WAITS)
    when_ready(job.log, signal.SIGUSR1, times=2)
    assert job.start("progress(1)" + WAITS).code == 75
    assert job.told["idle"] == 1
    when_ready(job.log, signal.SIGUSR1, times=3)
    assert job.start("progress(2)" + WAITS).code == 75
    assert job.told["idle"] == 0


def test_a_place_without_a_queue_leaves_the_stage_stopped(job):
    job.queue.takes = False
    when_ready(job.log, signal.SIGTERM)
    ending = job.start("progress(1)" + WAITS)
    assert (ending.state, ending.reason) == ("pending", "stopped on request")


def test_the_place_is_looked_after_while_a_stage_runs(job):
    job.start("time.sleep(0.5)")
    assert job.queue.watched >= 3


def test_the_record_says_running_while_a_stage_runs(job):
    seen = []
    job.queue.watch = lambda: seen.append(job.told["state"])
    job.start("time.sleep(0.3)")
    assert set(seen) == {"running"}
    assert job.told["state"] == "done"


# torchrun passes neither signals nor exit codes on; this stage stands for it and its process

JOINED = """
import subprocess
code = '''
import os, sys, time
from tuning import entry
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted, UserError
interrupt.POLL_SECONDS = 0.05
def main():
    interrupt.install()
    print("ready", flush=True)
    BODY
entry.run(main)
'''
environment = os.environ | {"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}
inner = subprocess.run([sys.executable, "-c", code], env=environment)
sys.exit(1 if inner.returncode else 0)
"""
SAVES = """
    for _ in range(400):
        time.sleep(0.02)
        interrupt.check()
    return 3
"""


def joined(body: str) -> str:
    """torchrun, with a stage behind it that does this."""
    return "progress(1)\n" + JOINED.replace("BODY", body.strip())


def test_a_joined_stage_is_stopped_by_a_file(job):
    when_ready(job.log, signal.SIGUSR1)
    ending = job.start(joined(SAVES), joined=True)
    assert (ending.state, ending.code) == ("pending", 75)
    assert "saved, the same command resumes" in job.log.read_text()
    assert job.queue.asked == ["received SIGUSR1"]
    assert [path.name for path in (job.folder / "stages" / "slurm").iterdir()] == ["stage.json"]


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ("raise UserError('no such model')", 2, "no such model"),
        ("raise ValueError('shapes')", 1, "ValueError: shapes"),
    ],
)
def test_a_joined_stage_leaves_its_exit_code_in_a_file(job, body, code, reason):
    ending = job.start(joined(body), joined=True)
    assert (ending.state, ending.code, ending.reason) == ("failed", code, reason)


def test_a_joined_stage_that_saved_by_itself_goes_back_into_the_queue(job):
    assert job.start(joined("raise Interrupted"), joined=True).code == 75
    assert job.queue.asked == ["saved"]


def test_a_joined_stage_that_is_done_is_done(job):
    assert job.start(joined("return 0"), joined=True).state == "done"


def test_a_file_of_an_earlier_start_stops_nothing(job):
    places = job.folder / "stages" / "slurm"
    places.mkdir(parents=True)
    (places / "stage.stop").touch()
    (places / "stage.exit").write_text('{"code": 2}')
    assert job.start(joined("time.sleep(0.3)\n    interrupt.check()"), joined=True).state == "done"


def test_a_stage_alone_is_sent_signals_and_leaves_no_files(job):
    when_ready(job.log, signal.SIGTERM)
    job.start("progress(1)" + WAITS)
    assert [path.name for path in (job.folder / "stages" / "slurm").iterdir()] == ["stage.json"]


KILLED = """
progress(1)
from tuning.runs import outcome
outcome.write(outcome.path(), outcome.Outcome(code={code}))
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("code", "ending", "signal"), [("-9", 75, ""), ("-11", 1, "SIGSEGV"), ("1", 1, "")]
)
def test_a_rank_that_was_killed_is_recorded_by_what_started_it(job, code, ending, signal):
    found = job.start(KILLED.format(code=code), joined=True)
    assert (found.code, found.signal) == (ending, signal)
