"""One writer per run directory, across processes, hosts and SLURM jobs.

The lock is a JSON file with its holder and a heartbeat. On the holder's host it is stale when the
process is gone or its pid was reused; on others when the heartbeat is older than two minutes or
the SLURM job no longer runs. SLURM may hide the jobs of other users: that it does not know one is
no sign then. Checking and acquiring happen under an flock, so that two processes
never acquire it at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, NoReturn

from tuning.runs import interrupt
from tuning.runs.atomic import read_json, write_json
from tuning.runs.errors import EXIT_AGAIN, EXIT_FAILED, InUse
from tuning.runs.json_text import NotJSON
from tuning.runs.log import logger
from tuning.runs.progress import tell_waiting

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a run directory."""

    host: str
    pid: int
    started: str
    job: str | None
    heartbeat: float

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def _checked(holder: Holder) -> Holder | None:
    """A holder as it was written; None for one that was edited."""
    texts = isinstance(holder.host, str) and isinstance(holder.started, str)
    job = holder.job is None or isinstance(holder.job, str)
    numbers = isinstance(holder.pid, int) and isinstance(holder.heartbeat, int | float)
    return holder if texts and job and numbers else None


def process_start(pid: int) -> str:
    """The start time of a process, which a later one with the same pid does not share.

    "" if the process is gone; a zombie counts as gone, since it cannot write.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if stat[0] in "ZX" else stat[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()


def ourselves() -> Holder:
    """The holder entry of this process."""
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=process_start(os.getpid()),
        job=slurm_job(os.environ),
        heartbeat=time.time(),
    )


def slurm_job(environ: Mapping[str, str]) -> str | None:
    """The SLURM job id of a process; of an array task `12_3`, since the plain id of one of the
    tasks is that of the whole array.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")


def is_stale(holder: Holder, *, ours: bool = True) -> bool:
    """Whether the holder is gone, so that its lock can be taken over; `ours`: whether it is a
    process of this user.
    """
    if holder.host == socket.gethostname():
        return process_start(holder.pid) != holder.started
    if time.time() - holder.heartbeat > STALE_SECONDS:
        return True
    return holder.job is not None and _job_ended(holder.job, ours=ours)


def _job_ended(job: str, *, ours: bool) -> bool:
    """Whether SLURM reports that a job is not running; False if it gives no answer. A job of ours
    that it does not list has ended.
    """
    if shutil.which("squeue") is None:
        return False
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        asked = subprocess.run(
            ["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        if asked.returncode == 0:
            states = set(asked.stdout.split())
            return (ours or bool(states)) and not {"RUNNING", "COMPLETING", "SUSPENDED"} & states
        return ours and "Invalid job id" in asked.stderr
    return False


def flock(file: IO[str]) -> None:
    """Wait until this process alone has a file locked; OSError with its name where that fails."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise OSError(error.errno, f"cannot lock ({error.strerror})", str(file.name)) from None


def drop_if_empty(directory: Path) -> None:
    """Remove a run directory in which nothing was written but the file that guards its lock."""
    with contextlib.suppress(OSError):
        if [path.name for path in directory.iterdir()] == [".lock"]:
            (directory / ".lock").unlink()
            directory.rmdir()


class Lock:
    """The lock of one directory; use `holding()`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock.json"
        self._guard = directory / ".lock"
        self._me: Holder | None = None
        self._stop = threading.Event()
        self._missed = 0
        """Heartbeats in a row that did not succeed."""

    def holder(self) -> Holder | None:
        """The current holder; None if the lock is free or stale."""
        holder = self._read()
        if holder is None or is_stale(holder, ours=self.owner() in (None, os.getuid())):
            return None
        return holder

    def owner(self) -> int | None:
        """The number of the user whose process wrote the lock; None if it is free."""
        try:
            return self.path.stat().st_uid
        except OSError:
            return None

    def _read(self) -> Holder | None:
        try:
            holder = read_json(self.path)
            return _checked(Holder(**holder)) if holder else None
        except (TypeError, NotJSON):
            return None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        self._guard.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with self._guard.open("a") as file:
                flock(file)
                # Whoever removed an empty directory may have removed the file that was waited for.
                if self._is_guard(file):
                    yield
                    return

    def _is_guard(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._guard.stat())
        except FileNotFoundError:
            return False

    def try_acquire(self) -> Holder | None:
        """Acquire the lock and return None; if another process holds it, return that holder."""
        with self._guarded():
            other = self.holder()
            if other is not None:
                return other
            self._me = ourselves()
            write_json(self.path, asdict(self._me))
        self._stop, self._missed = threading.Event(), 0
        for work in (self._beat, self._watch):
            threading.Thread(target=work, args=(self._stop,), daemon=True).start()
        return None

    def _beat(self, stop: threading.Event) -> None:
        """Renew the heartbeat; what a file system refuses now, it may allow at the next beat."""
        while not stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError), self._guarded():
                if stop.is_set():
                    return
                if not self._is_ours():
                    self._lost()
                assert self._me is not None
                self._me = replace(self._me, heartbeat=time.time())
                write_json(self.path, asdict(self._me))
                self._missed = 0

    def _watch(self, stop: threading.Event) -> None:
        """End this process before another host may take over, where no beat succeeds: it is asked
        to save after half of that time. A thread of its own, since a file system may hang; and it
        counts beats, not seconds, since a job may be suspended.
        """
        asked = False
        while not stop.wait(HEARTBEAT_SECONDS):
            self._missed += 1
            silent = self._missed * HEARTBEAT_SECONDS
            if silent + HEARTBEAT_SECONDS >= STALE_SECONDS:
                self._end("its lock could not be renewed", EXIT_AGAIN)
            if silent >= STALE_SECONDS / 2 and not asked:
                asked = True
                logger.warning(f"{self.path} cannot be renewed; saving before others take over")
                interrupt.ask_to_stop()

    def _is_ours(self) -> bool:
        holder = self._read()
        return (
            holder is not None
            and self._me is not None
            and (holder.host, holder.pid, holder.started)
            == (self._me.host, self._me.pid, self._me.started)
        )

    def _lost(self) -> NoReturn:
        """Exit: missed heartbeats let another process take over, and two must never write."""
        self._end("another process took it over", EXIT_FAILED)

    def _end(self, why: str, code: int) -> NoReturn:
        print(f"error: {self.path.parent}: {why}", file=sys.stderr, flush=True)
        os._exit(code)

    def release(self) -> None:
        """Release the lock, unless another process has taken it over; where the file system does
        not let us, it is stale once this process is gone.
        """
        self._stop.set()
        with contextlib.suppress(OSError), self._guarded():
            if self._is_ours():
                self.path.unlink(missing_ok=True)
            self._me = None

    @contextlib.contextmanager
    def holding(
        self,
        *,
        wait: bool = True,
        check: Callable[[], None] = lambda: None,
        poll_seconds: float = 0.5,
    ) -> Iterator[None]:
        """Hold the lock for a block. If another process holds it, wait, or raise InUse with
        `wait=False`.

        `check` is called while waiting and may raise, to stop waiting.
        """
        named: Holder | None = None
        while (other := self.try_acquire()) is not None:
            if not wait:
                raise InUse(f"{self.path.parent} is in use by {other}.")
            if named is None or (other.host, other.pid) != (named.host, named.pid):
                waiting = f"{self.path.parent.name}: in use by {other}; waiting for it"
                logger.info(waiting)
                tell_waiting(waiting)
                named = other
            check()
            time.sleep(poll_seconds)
        try:
            yield
        finally:
            self.release()
