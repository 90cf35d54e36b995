"""The state of every stage of an experiment, from run directories, supervisors' records and SLURM.

A stage is done if its run directory says so. Of the others, SLURM knows which are pending or
running, and the record of the supervisor has how a stage ended and why. If the supervisor was
killed before it could write, the output of the job, SLURM's job list or its accounting database
tell the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuning.launchers.slurm.client import WAITS, Job, Slurm
from tuning.launchers.slurm.ledger import Jobs, Task
from tuning.plan import Plan, Stage, Standing, standing
from tuning.runs import atomic
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.json_text import NotJSON, parse_object
from tuning.runs.lock import Lock
from tuning.runs.rundir import RunDirectory

ENDED = ("done", "skipped", "failed", "blocked", "cancelled", "stopped")


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """The state of one stage."""

    stage: str
    state: str
    """done, skipped, running, waiting, failed, blocked, cancelled, stopped or pending."""
    job: str = ""
    reason: str = ""
    progress: str = ""
    metric: str = ""
    elapsed: str = ""


@dataclass
class _View:
    """Everything that the status is read from, read once."""

    plan: Plan
    home: Path
    tasks: Mapping[str, Task] = field(default_factory=dict)
    queue: Mapping[str, Job] = field(default_factory=dict)
    accounted: Mapping[str, str] = field(default_factory=dict)
    answered: bool = True

    @property
    def folder(self) -> Path:
        return self.home / "outputs" / "reports" / self.plan.experiment


def stages_of(plan: Plan, home: Path, slurm: Slurm | None = None) -> list[StageStatus]:
    """Every stage of a plan that has work, in order; `slurm` is only asked about an experiment that
    was submitted.
    """
    view = _View(plan, home)
    view.tasks = Jobs(view.folder).latest()
    if view.tasks:
        view.queue, view.accounted = _ask(slurm or Slurm(), view)
    found: dict[str, StageStatus] = {}
    for stage in plan.stages:
        if stage.has_work:
            found[stage.name] = _status(view, stage, found)
    return list(found.values())


def states(found: Sequence[StageStatus]) -> dict[str, tuple[str, str]]:
    """{stage: (state, reason)}, for a report."""
    return {entry.stage: (entry.state, entry.reason) for entry in found}


def _ask(slurm: Slurm, view: _View) -> tuple[dict[str, Job], dict[str, str]]:
    """SLURM's job list and accounting of our tasks; empty if SLURM does not answer."""
    try:
        queue = {job.id: job for job in slurm.queue()}
        gone = [
            task.id
            for stage in view.plan.stages
            if (task := view.tasks.get(stage.name)) is not None
            and task.id not in queue
            and standing(view.plan, stage, view.home).state == "pending"
        ]
        return queue, slurm.ended(gone)
    except (StageFailed, UserError):
        view.answered = False
        return {}, {}


def _status(view: _View, stage: Stage, above: Mapping[str, StageStatus]) -> StageStatus:
    found = standing(view.plan, stage, view.home)
    task = view.tasks.get(stage.name)
    job = view.queue.get(task.id) if task else None
    state, reason = found.state, found.reason
    if state == "pending":
        state, reason = _not_done(view, stage, found, job, above)
    return StageStatus(
        stage=stage.name,
        state=state,
        job=task.id if task else "",
        reason=reason,
        progress=_progress(view, stage) if state == "running" else "",
        metric=_metric(found),
        elapsed=job.elapsed if job and state == "running" else _seconds(found),
    )


def _not_done(
    view: _View, stage: Stage, found: Standing, job: Job | None, above: Mapping[str, StageStatus]
) -> tuple[str, str]:
    """State and reason of a stage that is neither done nor skipped."""
    if job is not None and job.live:
        return _live(job, stage, above)
    if any(d is not None and Lock(d.path).holder() for d in (found.run, found.evaluation)):
        return "running", ""
    task = view.tasks.get(stage.name)
    record = atomic.read_object(view.folder / "stages" / f"{stage.name}.json") or {}
    if task is not None and record.get("job") not in (None, task.id):
        record = {}  # of an earlier submission
    if record.get("state") == "failed":
        reason = str(record["reason"])
        if task is not None and record.get("signal"):
            return _silent(view, task, job, reason, begun=True)  # SLURM may know who sent it
        return "failed", reason
    for parent in stage.parents:
        if parent in above and above[parent].state in ("failed", "blocked", "cancelled"):
            return "blocked", f"{parent} {above[parent].state}"
    if task is not None:
        if not view.answered:
            return "waiting", "SLURM does not answer"
        return _silent(view, task, job, str(record.get("reason", "")), begun=bool(record))
    if record.get("state") == "running":
        return "stopped", "its supervisor was killed; launch it again"
    return "pending", str(record.get("reason", "")) or "not started"


def _live(job: Job, stage: Stage, above: Mapping[str, StageStatus]) -> tuple[str, str]:
    if job.state not in WAITS:
        return "running", f"on {job.node}" if job.node else ""
    if job.reason == "Dependency":
        ended = ("done", "skipped")
        missing = [p for p in stage.parents if p in above and above[p].state not in ended]
        return "waiting", f"for {', '.join(missing)}" if missing else "dependency"
    return "waiting", _REASONS.get(job.reason, job.reason.lower())


_REASONS = {
    "JobHeldUser": "held; its submission was interrupted: submit again",
    "BeginTime": "requeued; SLURM restarts it soon",
    "None": "",
    "JobArrayTaskLimit": "limit of tasks that run at the same time",
    "QOSMaxJobsPerUserLimit": "limit of the QOS",
    "ReqNodeNotAvail": "nodes not available",
}

_WORDS = (
    (r"oom.kill|exceeded (?:job )?memory limit|Out Of Memory", "failed", "out of memory"),
    (r"DUE TO TIME LIMIT", "failed", "time limit reached before it saved"),
    (r"DUE TO NODE FAILURE", "failed", "node failure"),
    (r"DUE TO PREEMPTION", "stopped", "preempted"),
    (r"CANCELLED AT", "cancelled", "cancelled"),
)
_STATES = {
    "OUT_OF_MEMORY": ("failed", "out of memory"),
    "TIMEOUT": ("failed", "time limit reached before it saved"),
    "NODE_FAIL": ("failed", "node failure"),
    "BOOT_FAIL": ("failed", "node did not boot"),
    "PREEMPTED": ("stopped", "preempted"),
    "DEADLINE": ("failed", "deadline reached"),
    "CANCELLED": ("cancelled", "cancelled"),
}


def _silent(
    view: _View, task: Task, job: Job | None, recorded: str, *, begun: bool
) -> tuple[str, str]:
    """How a job ended whose supervisor could not record it."""
    output = view.folder / "slurm" / f"{task.token}-{task.index}.out"
    lines = _tail(output).splitlines()
    said = "\n".join(line for line in lines if "DUE TO JOB REQUEUE" not in line)
    known = job.state if job is not None else view.accounted.get(task.id, "")
    if known not in ("CANCELLED", "PREEMPTED"):
        for words, state, reason in _WORDS:
            if re.search(words, said):
                return state, reason
    if known in _STATES:
        return _STATES[known]
    if not said and not begun and known in ("", "COMPLETED"):
        return "cancelled", "left the queue before it started"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    return "failed", recorded or f"the job ended without a record{': ' + last if last else ''}"


def _tail(path: Path, size: int = 4096) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _progress(view: _View, stage: Stage) -> str:
    """`train 40/125 loss 0.51`, from the newest progress file of the stage."""
    places = sorted(
        (view.folder / "stages").glob(f"*/{stage.name}.json"), key=lambda p: p.stat().st_mtime
    )
    progress = atomic.read_object(places[-1]) if places else None
    if not progress or not progress.get("directory"):
        return "starting" if not progress else str(progress.get("phase", ""))
    return " ".join(
        filter(None, (progress["phase"], f"{progress['at']}/{progress['of']}", progress["note"]))
    )


def _metric(found: Standing) -> str:
    """pass@1 if it is known, else the last loss or perplexity."""
    scores = atomic.read_object(found.evaluation.path / "scores.json") if found.evaluation else None
    if scores:
        k, first = next(iter(scores["pass_at_k"].items()))
        return f"pass@{k} {first['estimate']:.3f}"
    if found.run is None:
        return ""
    for line in reversed(_tail(found.run.path / "metrics.jsonl").splitlines()):
        try:
            values = parse_object(line, "a line", nan=True)
        except NotJSON:
            continue
        for name in ("perplexity", "loss"):
            if isinstance(values.get(name), int | float):
                return f"{name} {values[name]:.4g}"
    return ""


def _seconds(found: Standing) -> str:
    """Total time of all phases and restarts, H:MM:SS."""
    directories: list[RunDirectory] = [d for d in (found.run, found.evaluation) if d is not None]
    phases = [p for d in directories for p in d.status["phases"].values()]
    total = round(sum(phase.get("seconds", 0.0) for phase in phases))
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}" if total else ""


def table(found: Sequence[StageStatus], width: int = 0) -> str:
    """The statuses as a text table; lines are cut to `width` if that is given."""
    heads = ("stage", "state", "job", "progress", "metric", "elapsed", "reason")
    rows = [[str(getattr(entry, head)) for head in heads] for entry in found]
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    widths = {i: max(len(heads[i]), *(len(row[i]) for row in rows)) for i in used}
    lines = ["  ".join(row[i].ljust(widths[i]) for i in used) for row in (list(heads), *rows)]
    return "\n".join(line.rstrip()[: width or None] for line in lines)
