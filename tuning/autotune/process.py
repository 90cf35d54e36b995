"""Runs a trial (trial.py) in a process of its own, with limits on time and host memory, and says
what came of it. Whatever happens to the trial is an observation; nothing of it is left running.

Out of memory is recognised whoever reports it: an allocator's error, the kernel's OOM killer (its
count of kills), or the watch here, which ends a trial above the limit before the kernel has to
choose. The trial itself ends when this process does (trial.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.autotune.observation import Observation, Outcome
from tuning.autotune.space import Candidate
from tuning.autotune.trial import Request, request_json
from tuning.runs import atomic, interrupt, memory, progress
from tuning.runs.errors import Interrupted, StageFailed, cut
from tuning.runs.interrupt import PARENT_VARIABLE, STOP_VARIABLE
from tuning.runs.json_text import NotJSON
from tuning.runs.outcome import EXIT_VARIABLE
from tuning.runs.progress import PROGRESS_VARIABLE

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""How long ranks may take to end after the first one has its result."""
SIGNAL_SECONDS = 1.0
"""How long a stop request may take to arrive here after the same signal ended the trial."""
PROBE_SECONDS = 180.0
_OURS = (PARENT_VARIABLE, STOP_VARIABLE, EXIT_VARIABLE, PROGRESS_VARIABLE)
"""Variables that speak of the stage, and not of its trials."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a trial may take."""

    seconds: float
    """Until it counts as hung."""
    host_bytes: int
    """Memory of all its processes on this host."""


@dataclass(kw_only=True)
class _Watched:
    """How the processes of a trial ended."""

    code: int | None = None
    """Exit code, -N for a signal; None: ended from here."""
    ended: str = ""
    """Why they were ended from here: time, memory, or that the result was there."""
    peak: int = 0
    """Most bytes of host memory that were seen."""


def run_trial(
    request: Request,
    candidate: Candidate,
    folder: Path,
    limits: Limits,
    tick: Callable[[], None] = lambda: None,
) -> Observation:
    """The observation of a candidate, without its speed in tokens; `folder` is made anew, `tick` is
    called several times a second.

    Raises Interrupted if this process is asked to stop; the trial is ended.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "request.json"
    atomic.write_json(file, request_json(request))
    kills = memory.oom_kills()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tuning.autotune.trial", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
        try:
            watched = _watch(process, folder, limits, tick)
        finally:
            end_family(process.pid)
            process.wait()
    if watched.ended != "result" and _stopped(watched.code):
        raise Interrupted
    processes = request.config.processes
    by_kill = watched.code == -signal.SIGKILL or processes > 1
    killed = by_kill and memory.oom_kills() > kills
    if killed:
        progress.tell_kills(memory.oom_kills() - kills)
    return _observation(candidate, folder, watched, processes, killed=killed)


def _watch(
    process: subprocess.Popen[bytes], folder: Path, limits: Limits, tick: Callable[[], None]
) -> _Watched:
    """Wait until the trial has ended, or has to be."""
    watched, began = _Watched(), time.monotonic()
    while (code := process.poll()) is None:
        interrupt.check()
        tick()
        used = sum(map(memory.resident, memory.family(process.pid)))
        watched.peak = max(watched.peak, used)
        if used > limits.host_bytes:
            watched.ended = "memory"
            return watched
        if time.monotonic() - began > limits.seconds:
            watched.ended = "time"
            return watched
        if _has_result(folder):
            watched.ended = "result"
            _wait_for(process, GRACE_SECONDS)
            return watched
        time.sleep(POLL_SECONDS)
    watched.code = code
    return watched


def _wait_for(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _has_result(folder: Path) -> bool:
    return any(rank.get("outcome") for rank in _ranks(folder))


def _ranks(folder: Path) -> list[dict[str, Any]]:
    """What the ranks have written, rank 0 first; what is no such file is passed over."""
    found = []
    for path in sorted(folder.glob("rank*.json"), key=lambda p: (len(p.name), p.name)):
        with contextlib.suppress(NotJSON, OSError):
            found.append(atomic.read_object(path) or {})
    return found


def _observation(
    candidate: Candidate, folder: Path, watched: _Watched, processes: int, *, killed: bool
) -> Observation:
    outcome, note = _outcome(folder, watched, killed=killed)
    ranks = _ranks(folder)
    if outcome != "ok":
        return Observation(candidate=candidate, outcome=outcome, note=cut(note, 300))
    try:
        if len(ranks) != processes:
            raise ValueError(f"{len(ranks)} of {processes} ranks left a result")
        first = ranks[0]
        if not first["finite"]:
            raise ValueError("the loss or its gradient is not a number")
        return Observation(
            candidate=candidate,
            outcome="ok",
            step_seconds=tuple(float(s) for s in first["steps"]),
            peak_bytes=max(int(rank["peak"]) for rank in ranks),
        )
    except (KeyError, TypeError, ValueError) as error:
        return Observation(candidate=candidate, outcome="garbage", note=cut(str(error), 300))


def _outcome(folder: Path, watched: _Watched, *, killed: bool) -> tuple[Outcome, str]:
    """What came of a trial, and why."""
    ranks = _ranks(folder)
    said = {rank.get("outcome"): str(rank.get("note", "")) for rank in reversed(ranks)}
    log = _end_of(folder / "log.txt")
    if watched.ended == "memory":
        return "oom", f"used {watched.peak / 2**30:.2f} GiB of host memory, above the limit"
    if ranks and ranks[0].get("outcome") == "ok":
        return "ok", ""  # the others lose their connection when rank 0 is done
    if "oom" in said:
        return "oom", said["oom"]
    if killed:
        return "oom", "killed by the kernel's OOM killer"
    if "crash" in said:
        return ("oom" if memory.is_out_of_memory(log) else "crash"), said["crash"]
    if watched.ended == "time":
        return "hang", "no result within its time"
    last = (log.strip().splitlines() or ["it said nothing"])[-1]
    if watched.code and memory.is_out_of_memory(log):
        return "oom", last
    if watched.code and watched.code < 0:
        return "crash", f"killed by {signal.Signals(-watched.code).name}"
    if watched.code:
        return "crash", f"exit code {watched.code}: {last}"
    return "garbage", "it ended without a result that can be read"


def _end_of(log: Path, size: int = 20_000) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read().decode(errors="replace")
    return ""


def _stopped(code: int | None) -> bool:
    """Whether this process was asked to stop; a signal to the whole job ends the trial, and its
    handler here may run a moment later.
    """
    if code is not None and -code in interrupt.SIGNALS:
        until = time.monotonic() + SIGNAL_SECONDS
        while not interrupt.asked_to_stop() and time.monotonic() < until:
            time.sleep(0.02)
    return interrupt.asked_to_stop()


def end_family(pid: int) -> None:
    """Kill a process and its descendants, wherever they are in their own sessions; those first that
    could start others.
    """
    for each in memory.family(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def _environment(drop: Iterable[str] = _OURS) -> dict[str, str]:
    """That of this process, with this code first, and nothing that speaks of its stage."""
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    others = [p for p in kept.get("PYTHONPATH", "").split(":") if p and p != str(site.CHECKOUT)]
    own = {
        "PYTHONPATH": ":".join([str(site.CHECKOUT), *others]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return kept | own


def probe(folder: Path) -> dict[str, Any]:
    """Name, memory and number of the GPUs, asked of CUDA in a process of its own: this one must not
    hold memory of a GPU while trials run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "probe.json"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tuning.autotune.trial", "--probe", str(path)],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        check=False,
    )
    found = atomic.read_object(path)
    if done.returncode != 0 or found is None:
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise StageFailed(
            f"the GPUs of this machine cannot be used: {last}. Hide them (CUDA_VISIBLE_DEVICES=) "
            "to train on its CPUs."
        )
    return found
