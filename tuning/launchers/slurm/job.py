"""What a SLURM job runs: one stage under its supervisor.

    python -m tuning.launchers.slurm.job --tasks FILE           a task of a submitted array
    python -m tuning.launchers.slurm.job tuning/run_sft.py ...  a stage that was submitted by hand

A stage that has to stop before it is done is requeued. While SFT runs, the forks of a sweetspot are
released as soon as its checkpoint is complete. The report submits what is left of the plan, or the
next round of a search.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.launchers.processes import (
    Placement,
    command,
    python_path,
    signals_reach,
    stage_words,
    this_job,
)
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.ledger import Jobs
from tuning.launchers.slurm.portions import submit_rest
from tuning.launchers.slurm.rounds import submit_round
from tuning.launchers.slurm.shared import followers
from tuning.launchers.supervisor import Here, Host, Supervisor
from tuning.plan import Plan, Stage, require_format, sweetspot_ready
from tuning.runs import atomic
from tuning.runs.errors import EXIT_AGAIN, StageFailed, UserError
from tuning.runs.interrupt import PARENT_VARIABLE
from tuning.runs.lock import slurm_job

WATCH_SECONDS = 2.0
RETRY_SECONDS = 110.0
"""How long to retry while the controller does not answer; it may be restarting."""
LAUNCHERS = ("run_sweetspot_pipeline.py", "passk_pipeline.py", "ppl_pipeline.py")
"""Scripts that start the stages of an experiment, each with its share of the cores."""
TRIES = 5
"""Attempts to release a fork before it is left to wait for the end of SFT."""


class Allocation:
    """A SLURM job as the host of a supervisor."""

    starts_again = False

    def __init__(self, slurm: Slurm, job: str, release: Callable[[], None] | None = None) -> None:
        self.slurm = slurm
        self.job = job
        self.release = release
        self._next = 0.0

    def watch(self) -> None:
        """Release forks whose checkpoint exists."""
        if self.release is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + WATCH_SECONDS
        try:
            self.release()
        except Exception as error:  # whatever fails here, the stage must continue
            print(f"warning: forks cannot be released now ({error!r})", flush=True)
            self._next += 30 * WATCH_SECONDS

    def requeue(self, why: str, record: Callable[[str], None]) -> bool:
        """Requeue this job, unless SLURM is ending it: a cancelled job stays cancelled, and a
        preempted one is requeued by SLURM, unless SLURM is configured to cancel such jobs.
        """
        until = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                state = self.slurm.state(self.job)
                if state != "RUNNING" and not self.slurm.preempted(self.job):
                    record(f"{why}; SLURM says {state.lower() or 'nothing'}")
                    return True
                record(f"{why}; requeued")
                self.slurm.requeue(self.job)
                return True
            except (StageFailed, UserError) as error:
                record(f"{why}; could not be requeued: {error}")
                if time.monotonic() > until:
                    return True
                time.sleep(2)


class Forks:
    """The stages that depend on a sweetspot of an SFT stage, and their jobs; those of other
    experiments too that follow this one.
    """

    def __init__(self, slurm: Slurm, folder: Path, stage: str) -> None:
        self.slurm = slurm
        self.folder = folder
        self.stage = stage
        self._jobs: dict[Path, Jobs] = {}
        self._released: set[tuple[str, tuple[int, int]]] = set()
        self._tries: Counter[str] = Counter()

    def release(self) -> None:
        """Remove the dependency of the stages whose checkpoint is complete; if the cluster forbids
        it, they start when SFT is done.
        """
        for folder in (self.folder, *followers(self.folder)):
            self._release_of(folder)

    def _release_of(self, folder: Path) -> None:
        """Those of one experiment."""
        found = atomic.read_object(folder / "plan.json")
        if found is None:
            return
        plan = Plan.from_json(found)
        jobs = self._jobs.setdefault(folder, Jobs(folder))
        changed = jobs.changed()
        waiting = [s for s in plan.stages if s.parent == self.stage and s.sweetspot is not None]
        for stage in waiting:
            task = jobs.task_of(stage.name)
            if task is None or (task.id, changed) in self._released:
                continue
            if sweetspot_ready(plan, stage, site.home()):
                self._tries[task.id] += 1
                try:
                    self.slurm.depend(task.number, [task.index], "")
                    print(f"{stage.name}: released, its checkpoint exists", flush=True)
                except (StageFailed, UserError) as error:
                    print(f"{stage.name}: not released ({error})", flush=True)
                    if self._tries[task.id] < TRIES:
                        continue
                self._released.add((task.id, changed))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the stage; 75 if it was requeued."""
    words = list(sys.argv[1:] if argv is None else argv)
    _prepare_environment()
    return _submitted(Path(words[1])) if words[:1] == ["--tasks"] else _by_hand(words)


def _prepare_environment() -> None:
    """Import this code first, and forget the launcher that submitted from."""
    os.environ.pop(PARENT_VARIABLE, None)
    os.environ["PYTHONPATH"] = python_path()


def _submitted(tasks: Path) -> int:
    """Run a task of an array."""
    found: dict[str, Any] | None = atomic.read_object(tasks)
    if found is None:
        raise UserError(f"there is no file '{tasks}', which lists the stages of this array.")
    require_format(found, f"'{tasks}'")
    stage = Stage.from_json(found["stages"][int(os.environ["SLURM_ARRAY_TASK_ID"])])
    folder = Path(found["folder"])
    slurm = Slurm()
    job = slurm_job(os.environ) or ""
    if stage.role == "report" and not (submit_rest(folder) and submit_round(folder)):
        Allocation(slurm, job).requeue("what is left could not be submitted yet", print)
        return EXIT_AGAIN
    forks = Forks(slurm, folder, stage.name) if stage.kind == "sft" else None
    host = Allocation(slurm, job, forks.release if forks else None)
    places = {
        "record": folder / "stages" / f"{stage.name}.json",
        "progress": folder / "stages" / "slurm" / f"{stage.name}.json",
        "log": folder / "logs" / f"{stage.name}.txt",
    }
    words = stage_words(stage, folder, wandb=found["wandb"])
    return _supervise(words, this_job(), host, **places)


def _by_hand(words: list[str]) -> int:
    """Run a stage that was submitted with sbatch by hand, or started here."""
    if not words or words[0].startswith("-"):
        raise UserError("name a script: sbatch slurm/stage.sbatch tuning/run_sft.py --model ...")
    script = Path(words[0])
    script = script if script.is_absolute() else site.CHECKOUT / script
    if not script.is_file():
        raise UserError(f"there is no '{words[0]}' in {site.CHECKOUT}.")
    launches = script.name in LAUNCHERS
    number = slurm_job(os.environ)
    host: Host = Allocation(Slurm(), number) if number else Here()
    folder = site.home() / "outputs" / "jobs" / (number or f"local-{os.getpid()}")
    return _supervise(
        [str(script), *words[1:]],
        None if launches else this_job(),
        host,
        record=folder / "record.json",
        progress=folder / "progress.json",
        log=_standard_output() or folder / "log.txt",
    )


def _standard_output() -> Path | None:
    """The file that standard output goes to; None if it is not a file."""
    target = Path(f"/proc/{os.getpid()}/fd/1").resolve()
    if not target.is_file():
        return None
    fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
    return target


def _supervise(
    words: list[str],
    placement: Placement | None,
    host: Host,
    *,
    record: Path,
    progress: Path,
    log: Path,
) -> int:
    """Run a script with its arguments at a placement, which may use all cores of the job; None for
    a launcher, which gives its stages their own.
    """
    start, joined = [sys.executable, *words], False
    if placement is not None:
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
        os.environ.update(placement.environment(cores))
        start, joined = command(words, placement), not signals_reach(placement)
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    ending = Supervisor(
        start,
        record,
        log,
        progress,
        host=host,
        joined=joined,
        continues=isinstance(host, Allocation) and restarts > 0,
    ).run()
    state = "to be continued" if ending.code == EXIT_AGAIN else ending.state
    print(f"{record.stem}: {state}{': ' + ending.reason if ending.reason else ''}")
    return ending.code


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
