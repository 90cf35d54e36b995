"""The local launcher: the stages of a plan in order on this machine, small ones side by side.

A stage starts when its parents are done; one that failed blocks only its descendants. A stage that
the engine trains gets all GPUs, one process each; it and one that TRL trains get as many processes
as were asked for. A stage of several processes runs alone with all cores, as a wide stage
(pre-training) does, and as one does that is tuned, whose trials measure the machine; the others get
one GPU and a fixed share of the cores each, so that the number of threads of a stage does not
depend on what else is left to do. Every stage runs under a supervisor, which ends when this process
does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tuning import config as site
from tuning.launchers.display import Display
from tuning.launchers.processes import (
    Placement,
    command,
    python_path,
    signals_reach,
    stage_words,
)
from tuning.plan import Plan, Stage, standing
from tuning.runs import atomic, provenance
from tuning.runs.errors import EXIT_AGAIN, UserError
from tuning.runs.interrupt import PARENT_VARIABLE
from tuning.runs.progress import PROGRESS_VARIABLE, tell

POLL_SECONDS = 0.1
ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
A_STAGE = 1_000_000
"""More than the steps of any stage, where progress over all stages is one number."""


@dataclass(kw_only=True)
class Running:
    """A stage that is running."""

    stage: Stage
    process: subprocess.Popen[bytes]
    record: Path
    progress: Path
    placement: Placement
    started: float
    asked: bool = False


class LocalLauncher:
    """Runs a plan; `launch()` returns the state and the reason of every stage.

    `processes`: of each stage that is trained; by default, one per GPU with the engine, and one
    with TRL. `environ`: variables of stages that are not set here. `failed`: stages that failed or
    are blocked already, and are not tried again.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        max_parallel: int | None = None,
        processes: int | None = None,
        wait: bool = True,
        wandb: str = "off",
        environ: Mapping[str, str] | None = None,
        failed: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.plan = plan
        self.wait = wait
        self.wandb = wandb
        self.devices = provenance.gpus()
        self.most = _processes(processes, len(self.devices))
        self.asked = self.most if processes is not None else 1
        self.slots = max_parallel or max(1, len(self.devices) or min(2, os.cpu_count() or 1))
        self.environ = environ or {}
        self.folder = site.reports_dir() / plan.experiment
        self.display = Display(plan)
        self.states: dict[str, tuple[str, str]] = dict(failed or {})
        self.running: list[Running] = []
        self.stopping = False
        self._furthest = -1

    def launch(self) -> dict[str, tuple[str, str]]:
        """Run what is not done; {stage name: (done | skipped | failed | blocked | pending,
        reason)}.
        """
        previous = {n: signal.signal(n, self._stop) for n in ASKS}
        try:
            while not self._finished():
                self._settle()
                if self.stopping:
                    self._pass_on_stop()
                else:
                    self._start_ready()
                self._reap()
                self.display.refresh(self.running)
                self._tell()
                time.sleep(POLL_SECONDS)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.display.close()
            shutil.rmtree(self.folder / "stages" / str(os.getpid()), ignore_errors=True)
        for stage in self.plan.stages:
            self.states.setdefault(stage.name, ("pending", ""))
        return self.states

    def _tell(self) -> None:
        """Report the progress of the plan, if this process itself is supervised."""
        found = [atomic.read_object(entry.progress) or {} for entry in self.running]
        at = A_STAGE * len(self.states) + sum(int(entry.get("at", 0)) for entry in found)
        if at > self._furthest and os.environ.get(PROGRESS_VARIABLE):
            self._furthest = at
            of = A_STAGE * len(self.plan.stages)
            tell(directory=str(self.folder), phase="plan", at=at, of=of, note="", time=time.time())

    def _finished(self) -> bool:
        if self.running:
            return False
        return self.stopping or all(stage.name in self.states for stage in self.plan.stages)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def _pass_on_stop(self) -> None:
        """Ask every stage to stop, once each."""
        for entry in self.running:
            if not entry.asked:
                self.display.say(f"stopping {entry.stage.name}: saving its state")
                entry.process.send_signal(signal.SIGTERM)
                entry.asked = True

    def _settle(self) -> None:
        """Record the stages that are done, skipped, or blocked by a failure."""
        busy = {entry.stage.name for entry in self.running}
        for stage in self.plan.stages:
            if stage.name in self.states or stage.name in busy:
                continue
            above = [self.states.get(parent, ("", ""))[0] for parent in stage.parents]
            if any(state in ("failed", "blocked") for state in above):
                failed = next(
                    p for p in stage.parents if self.states[p][0] in ("failed", "blocked")
                )
                self._note(stage, "blocked", f"{failed} failed")
            elif all(state in ("done", "skipped") for state in above):
                found = standing(self.plan, stage, site.home())
                if found.state != "pending":
                    self._note(stage, found.state, found.reason)
                elif not stage.has_work:
                    self._note(stage, "done", "")

    def _note(self, stage: Stage, state: str, reason: str, seconds: float | None = None) -> None:
        self.states[stage.name] = (state, reason)
        self.display.ended(stage, state, reason, seconds)

    def _start_ready(self) -> None:
        for stage in self.plan.stages:
            if stage.name in self.states or any(e.stage is stage for e in self.running):
                continue
            ready = all(
                self.states.get(p, ("", ""))[0] in ("done", "skipped") for p in stage.parents
            )
            if not ready:
                continue
            alone = self._alone(stage) or any(self._alone(entry.stage) for entry in self.running)
            if len(self.running) >= self.slots or (alone and self.running):
                return
            self.running.append(self._start(stage))
            self.display.started(stage)

    def processes_of(self, stage: Stage) -> int:
        """How many processes train a stage together."""
        if "train" not in stage.phases:
            return 1
        return self.most if stage.joinable else self.asked

    def _alone(self, stage: Stage) -> bool:
        """Whether no other stage may run beside this one."""
        several = max(self.processes_of(stage), _gpus_of(stage)) > 1
        return stage.wide or stage.tunes or several

    def _placement(self, stage: Stage) -> Placement:
        """The GPUs and the number of processes of a stage that starts now."""
        if (processes := self.processes_of(stage)) > 1:
            return Placement(processes=processes, devices=tuple(self.devices[:processes]))
        taken = Counter(device for entry in self.running for device in entry.placement.devices)
        freest = sorted(self.devices, key=taken.__getitem__)
        return Placement(devices=tuple(freest[: _gpus_of(stage)]))

    def _start(self, stage: Stage) -> Running:
        record = self.folder / "stages" / f"{stage.name}.json"
        progress = self.folder / "stages" / str(os.getpid()) / f"{stage.name}.json"
        log = self.folder / "logs" / f"{stage.name}.txt"
        progress.parent.mkdir(parents=True, exist_ok=True)
        placement = self._placement(stage)
        words = stage_words(stage, self.folder, wait=self.wait, wandb=self.wandb)
        supervisor = [
            sys.executable,
            "-P",
            "-m",
            "tuning.launchers.supervisor",
            "--record",
            str(record),
            "--progress",
            str(progress),
            "--log",
            str(log),
            *([] if signals_reach(placement) else ["--joined"]),
            "--",
            *command(words, placement),
        ]
        process = subprocess.Popen(
            supervisor,
            stdin=subprocess.DEVNULL,
            env=self._environment(stage, placement),
            start_new_session=True,
        )
        return Running(
            stage=stage,
            process=process,
            record=record,
            progress=progress,
            placement=placement,
            started=time.monotonic(),
        )

    def _environment(self, stage: Stage, placement: Placement) -> dict[str, str]:
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)
        share = cores if self._alone(stage) else max(1, cores // self.slots)
        own = {PARENT_VARIABLE: str(os.getpid()), "PYTHONPATH": python_path()}
        return {**self.environ, **os.environ} | own | placement.environment(share)

    def _reap(self) -> None:
        for entry in [e for e in self.running if e.process.poll() is not None]:
            self.running.remove(entry)
            seconds = time.monotonic() - entry.started
            state, reason = self._outcome(entry)
            if state == "again":
                self.display.say(f"{entry.stage.name}: its supervisor was stopped; restarting")
            elif state != "pending":
                self._note(entry.stage, state, reason, seconds)

    def _outcome(self, entry: Running) -> tuple[str, str]:
        """State and reason of a stage whose supervisor has ended; run directories decide."""
        found = standing(self.plan, entry.stage, site.home())
        if found.state != "pending":
            return found.state, found.reason
        if self.stopping:
            return "pending", ""
        code = entry.process.returncode
        record: dict[str, Any] = atomic.read_object(entry.record) or {}
        if code == EXIT_AGAIN or code < 0:
            return "again", ""
        return "failed", record.get("reason") or f"exit code {code}"


def _processes(asked: int | None, gpus: int) -> int:
    """How many processes train one stage together; UserError for a number that cannot be had."""
    if asked is None:
        return max(1, gpus)
    if asked < 1:
        raise UserError(f"processes is {asked}; it must be at least 1.")
    if asked > gpus > 0:
        raise UserError(
            f"processes is {asked}; each needs a GPU of its own, and this machine has {gpus}."
        )
    return asked


def _gpus_of(stage: Stage) -> int:
    """The GPUs that a single process of a stage uses at once: those that sampling divides a model
    among.
    """
    sampling = (stage.evaluation or {}).get("sampling", {}) if "infer" in stage.phases else {}
    return int(sampling.get("tensor_parallel_size", 1))
