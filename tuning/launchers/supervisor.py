"""Starts the process of one stage, outlives it, and decides whether to restart it. The same under
every launcher; imports no torch.

    python -m tuning.launchers.supervisor --record FILE --log FILE -- python tuning/run_sft.py ...

Forwards SIGTERM, SIGINT and SIGUSR1, and stops the stage when its own parent is gone. A stage is
restarted when it saved and stopped (75) although nobody asked this process to stop, and when it was
killed by signal 9, had made progress, and shows no sign of memory exhaustion: right here, or,
inside a SLURM job, by requeueing the job. Writes how the stage ended, and why, to the record and to
the run's status.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tuning.runs import atomic, outcome
from tuning.runs.errors import EXIT_AGAIN, EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR
from tuning.runs.interrupt import PARENT_VARIABLE, STOP_VARIABLE
from tuning.runs.lock import Lock, slurm_job
from tuning.runs.memory import oom_kills
from tuning.runs.outcome import EXIT_VARIABLE, Outcome
from tuning.runs.progress import PROGRESS_VARIABLE, kills_file, told_kills
from tuning.runs.rundir import RunDirectory

POLL_SECONDS = 0.1
MOST_ATTEMPTS = 100
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a stage ended: its state, the exit code to return, and why."""

    state: str
    code: int
    reason: str = ""
    signal: str = ""
    """The signal that killed it for good."""


def decide(code: int, *, asked: bool, progressed: bool, out_of_memory: bool) -> str:
    """`again` for a stage to restart, or its final state, from its exit code (-N for signal N).

    `asked`: whether this supervisor was asked to stop; `progressed`: since the stage was started.
    """
    if code == EXIT_DONE:
        return "done"
    if code == EXIT_AGAIN or -code in PASSED_ON:
        if asked:
            return "stopped"
        return "again" if progressed else "failed"
    if code == -signal.SIGKILL and not out_of_memory:
        return "stopped" if asked else "again" if progressed else "failed"
    return "failed"


class Host(Protocol):
    """Where a supervisor runs: a plain machine, or the allocation of a job."""

    starts_again: bool
    """Whether a stage is restarted by this supervisor."""

    def watch(self) -> None:
        """Called several times a second while the stage runs."""

    def requeue(self, why: str, record: Callable[[str], None]) -> bool:
        """Requeue the job of the stage; whether there is a queue. `record` writes down why, before
        the job ends.
        """


class Here:
    """Outside a scheduler: the process is never preempted."""

    starts_again = True

    def watch(self) -> None:
        """Nothing to do."""

    def requeue(self, why: str, record: Callable[[str], None]) -> bool:
        """There is no queue."""
        return False


class Supervisor:
    """One stage from its first start to its end.

    `joined`: the command starts the stage through torchrun or in a container, which forward neither
    signals nor exit codes: a file requests the stop, and the recorded outcome has the code.
    `continues`: keep the counts of the record that an earlier job of the stage wrote.
    """

    def __init__(
        self,
        command: Sequence[str],
        record: Path,
        log: Path,
        progress: Path | None = None,
        *,
        host: Host | None = None,
        joined: bool = False,
        continues: bool = False,
    ) -> None:
        self.command = list(command)
        self.record = record
        self.progress_file = progress or record.with_suffix(".progress.json")
        self.log = log
        self.host = host or Here()
        self.joined = joined
        self.asked = 0
        self._stop_file = self.progress_file.with_suffix(".stop")
        self._exit_file = self.progress_file.with_suffix(".exit")
        self._log_start = 0
        self._outcome = Outcome(code=0)
        before = (atomic.read_object(record) or {}) if continues else {}
        self._attempts = int(before.get("attempts", 0))
        self._idle = int(before.get("idle", 0))
        self._furthest: dict[str, int] = dict(before.get("furthest", {}))
        self._child: subprocess.Popen[bytes] | None = None
        self._parent = int(os.environ.get(PARENT_VARIABLE) or os.getppid())

    def run(self) -> Ending:
        """Run the stage to its end; the record is written whole."""
        for number in PASSED_ON:
            signal.signal(number, lambda number, _frame: self._pass_on(number))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._attempts += 1
            self._write(Ending(state="running", code=0))
            memory = oom_kills()
            self._outcome = self._attempt()
            out_of_memory = oom_kills() - told_kills(self.progress_file) > memory
            verdict = self._verdict(self._outcome.code, out_of_memory=out_of_memory)
            if verdict == "again" and self.host.starts_again:
                continue
            if verdict in ("again", "stopped") and self._requeued(self._outcome.code):
                return Ending(state="pending", code=EXIT_AGAIN)
            ending = self._ending(verdict, self._outcome, out_of_memory=out_of_memory)
            self._write(ending)
            self._mark_run(ending)
            return ending

    def _verdict(self, code: int, *, out_of_memory: bool) -> str:
        """`decide()`, with the progress since the last start, here or in an earlier job."""
        progressed = self._progressed()
        if progressed:
            self._idle = 0
        elif not self._waited():
            self._idle += 1
        verdict = decide(
            code,
            asked=bool(self.asked),
            progressed=progressed and not self._too_often(),
            out_of_memory=out_of_memory,
        )
        return "failed" if verdict == "stopped" and self._stuck() else verdict

    def _waited(self) -> bool:
        """Whether the stage was waiting for another process that holds its run."""
        return (atomic.read_object(self.progress_file) or {}).get("phase") == "waiting"

    def _too_often(self) -> bool:
        return self.host.starts_again and self._attempts >= MOST_ATTEMPTS

    def _stuck(self) -> bool:
        """Whether two starts in a row made no progress, where each start has to queue."""
        return not self.host.starts_again and self._idle > 1

    def _requeued(self, code: int) -> bool:
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else "saved"
        if self.asked:
            why = f"received {signal.Signals(self.asked).name}"
        return self.host.requeue(
            why,
            lambda reason: self._write(Ending(state="pending", code=EXIT_AGAIN, reason=reason)),
        )

    def _write(self, ending: Ending) -> None:
        """Write the record: the state of the stage, and the counts for its next start."""
        counts = {
            "attempts": self._attempts,
            "idle": self._idle,
            "furthest": self._furthest,
            "job": slurm_job(os.environ),
        }
        atomic.write_json(self.record, asdict(ending) | counts)

    def _attempt(self) -> Outcome:
        """Start the stage and wait for its end."""
        environment = os.environ | {
            PARENT_VARIABLE: str(os.getpid()),
            PROGRESS_VARIABLE: str(self.progress_file),
            STOP_VARIABLE: str(self._stop_file),
            EXIT_VARIABLE: str(self._exit_file),
            "PYTHONUNBUFFERED": "1",
        }
        self._stop_file.parent.mkdir(parents=True, exist_ok=True)
        for left in (self._stop_file, self._exit_file, kills_file(self.progress_file)):
            left.unlink(missing_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        if self.asked:
            self._tell_child(signal.SIGTERM)
        while (code := self._child.poll()) is None:
            if os.getppid() != self._parent and not self.asked:
                self._pass_on(signal.SIGTERM)
            self.host.watch()
            time.sleep(POLL_SECONDS)
        return self._ended(code)

    def _ended(self, code: int) -> Outcome:
        """The outcome of a process that left with `code` (-N for signal N, 128+N if what started it
        passes it on so).

        The exit code of torchrun is only right if it is 0; the recorded one is that of the rank
        that failed first, or of rank 0.
        """
        code = 128 - code if self.joined and code > 128 else code
        recorded = outcome.read(self._exit_file)
        self._exit_file.unlink(missing_ok=True)
        self._stop_file.unlink(missing_ok=True)
        if recorded is None:
            return Outcome(code=code)
        if self.joined and code != EXIT_DONE:
            return recorded
        return recorded if recorded.code == code else Outcome(code=code)

    def _pass_on(self, number: int) -> None:
        """Forward a signal; SIGINT as SIGTERM, since a second SIGINT would not let it save."""
        self.asked = number
        self._tell_child(signal.SIGTERM if number == signal.SIGINT else number)

    def _tell_child(self, number: int) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        if self.joined:
            self._stop_file.touch()
            return
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    def _progressed(self) -> bool:
        """Whether the stage got further than ever before; repeated steps do not count."""
        found: dict[str, Any] = atomic.read_object(self.progress_file) or {}
        if not found.get("directory"):
            return False
        place = f"{found['directory']}:{found['phase']}"
        further = found["at"] > self._furthest.get(place, 0) or place not in self._furthest
        self._furthest[place] = max(found["at"], self._furthest.get(place, 0))
        return further

    def _ending(self, verdict: str, found: Outcome, *, out_of_memory: bool) -> Ending:
        code = found.code
        if verdict == "done":
            return Ending(state="skipped" if found.skipped else "done", code=0, reason=found.reason)
        if verdict == "stopped":
            return Ending(state="pending", code=EXIT_AGAIN, reason="stopped on request")
        if out_of_memory:
            return Ending(state="failed", code=EXIT_FAILED, reason="out of memory")
        if code < 0:
            name = signal.Signals(-code).name
            return Ending(state="failed", code=EXIT_FAILED, reason=f"killed by {name}", signal=name)
        if code == EXIT_AGAIN:
            return Ending(state="failed", code=1, reason="stopped again and again without progress")
        reason = found.reason or last_line(self.log, self._log_start).removeprefix("error: ")
        return Ending(
            state="failed", code=code if code == EXIT_USER_ERROR else EXIT_FAILED, reason=reason
        )

    def _mark_run(self, ending: Ending) -> None:
        """Write `failed` to the status of a run whose process was killed before it could."""
        found = atomic.read_object(self.progress_file) or {}
        if ending.state != "failed" or not found.get("directory"):
            return
        directory = RunDirectory(Path(found["directory"]))
        if directory.status["state"] == "running" and Lock(directory.path).holder() is None:
            directory.write_status("failed", ending.reason)


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a log after byte `start`, preferably an error, without progress bars; for
    people, as the reason of a failure that left no record.
    """
    lines = [part.strip() for part in re.split(r"[\r\n]+", _tail(log, start))]
    written = [line for line in (_BAR.sub("", line) for line in lines) if line]
    errors = [line for line in written if line.startswith("error: ")]
    return (errors or written or [""])[-1]


def _tail(log: Path, start: int) -> str:
    """The end of a log, from byte `start` at the earliest."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(start, file.tell() - 8192))
        return file.read().decode(errors="replace")
    return ""


_BAR = re.compile(r"^[^|]*\d+%\|[^|]*\| *\d+/\d+ *\[[^\]]*\]?")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the stage: 0, 1, 2 or 75."""
    from tuning.flags import Parser

    parser = Parser(prog="python -m tuning.launchers.supervisor", description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="where to write how it ended")
    parser.add_argument("--log", type=Path, required=True, help="where the stage's output goes")
    parser.add_argument("--progress", type=Path, help="where the stage reports its progress")
    parser.add_argument(
        "--joined",
        action="store_true",
        help="the command starts the stage through torchrun or in a container",
    )
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:split])
    supervisor = Supervisor(
        words[split + 1 :], args.record, args.log, args.progress, joined=args.joined
    )
    return supervisor.run().code


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
