"""The state of every stage of an experiment, from run directories, supervisors' records and SLURM.

A stage is done if its run directory says so. Of the others, SLURM knows which are pending or
running, and the record of the supervisor has how a stage ended and why. If the supervisor was
killed before it could write, the output of the job, SLURM's job list or its accounting database
tell the reason.
"""

from __future__ import annotations

import os
import pwd
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuning.launchers.slurm import reasons
from tuning.launchers.slurm.client import WAITS, Job, Slurm
from tuning.launchers.slurm.ledger import REPORT, Jobs, Task
from tuning.launchers.slurm.portions import left_stages
from tuning.launchers.slurm.script import ENDED_IN_SETUP, STOPPED_IN_SETUP
from tuning.launchers.slurm.shared import Elsewhere, Former, elsewhere, latest
from tuning.manage import progress
from tuning.plan import Plan, Stage, Standing, standing
from tuning.runs import atomic, typed
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
    folder: Path
    """The folder of the report."""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    queue: Mapping[str, Job] = field(default_factory=dict)
    accounted: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Elsewhere] = field(default_factory=dict)
    """Live tasks of other experiments that have the runs of stages."""
    former: Mapping[str, Former] = field(default_factory=dict)
    """The last tasks of other experiments that had the runs of stages, later than this one."""
    users: dict[str, int | None] = field(default_factory=dict)
    """Who submitted arrays, by their tokens."""
    unreleased: frozenset[str] = frozenset()
    """The tokens of arrays whose submission was interrupted."""
    left: frozenset[str] = frozenset()
    """Stages that are left for a later portion."""
    answered: bool = True


def stages_of(plan: Plan, home: Path, slurm: Slurm | None = None) -> list[StageStatus]:
    """Every stage of a plan that has work, in order; `slurm` is only asked about an experiment that
    was submitted.
    """
    view = _View(plan, home, home / "outputs" / "reports" / plan.experiment)
    jobs = Jobs(view.folder)
    view.left = frozenset(left_stages(view.folder))
    view.tasks = jobs.latest()
    if view.tasks:
        view.unreleased = frozenset(a.token for a in jobs.arrays() if not a.released)
        _ask(slurm or Slurm(), view, jobs)
    found: dict[str, StageStatus] = {}
    for stage in plan.stages:
        if stage.has_work:
            found[stage.name] = _status(view, stage, found)
    return list(found.values())


def states(found: Sequence[StageStatus]) -> dict[str, tuple[str, str]]:
    """{stage: (state, reason)}, for a report."""
    return {entry.stage: (entry.state, entry.reason) for entry in found}


def _ask(slurm: Slurm, view: _View, jobs: Jobs) -> None:
    """Read SLURM's job list and accounting of the tasks of everybody who submitted a part, and of
    other experiments' tasks that do the same; nothing if SLURM does not answer.
    """
    pending = [s for s in view.plan.stages if standing(view.plan, s, view.home).state == "pending"]
    view.former = _former(view, pending, jobs)
    view.users = {array.token: array.user for array in jobs.arrays()}
    view.users |= {former.task.token: former.user for former in view.former.values()}
    try:
        users = {user for user in view.users.values() if user is not None}
        queue = {job.id: job for job in slurm.queue(users)}
        tasks = [task for stage in pending if (task := view.tasks.get(stage.name)) is not None]
        tasks += [former.task for former in view.former.values()]
        view.accounted = slurm.ended([task.id for task in tasks if task.id not in queue])
        view.others = elsewhere(pending, view.folder, slurm.queue)
        view.queue = queue | {other.task.id: other.job for other in view.others.values()}
    except (StageFailed, UserError):
        view.answered = False


def _former(view: _View, pending: Sequence[Stage], jobs: Jobs) -> dict[str, Former]:
    """The tasks of other experiments that were submitted later than the own ones of stages."""
    times = {array.token: array.time for array in jobs.arrays()}
    own = {name: times[task.token] for name, task in view.tasks.items()}
    wanted = [stage for stage in pending if stage.name not in view.left]
    found = latest(wanted, view.folder)
    return {name: f for name, f in found.items() if name not in own or f.time > own[name]}


def _there(view: _View, stage: Stage) -> _View:
    """The view from the experiment whose job has a stage: this one, unless it has no live job of
    the stage and another one has, or had the last.
    """
    task = view.tasks.get(stage.name)
    job = view.queue.get(task.id) if task else None
    other = view.others.get(stage.name) or view.former.get(stage.name)
    if other is None or (job is not None and job.live):
        return view
    tasks = {stage.name: other.task}
    return replace(view, folder=other.folder, tasks=tasks, others={}, left=frozenset())


def _status(view: _View, stage: Stage, above: Mapping[str, StageStatus]) -> StageStatus:
    found = standing(view.plan, stage, view.home)
    there = _there(view, stage) if found.state == "pending" else view
    task = there.tasks.get(stage.name)
    job = there.queue.get(task.id) if task else None
    state, reason = found.state, found.reason
    if state == "pending":
        state, reason = _not_done(there, stage, found, job, above)
    if there is not view:
        reason = _of_experiment(there.folder.name, state, reason)
    return StageStatus(
        stage=stage.name,
        state=state,
        job=task.id if task else "",
        reason=reason,
        progress=_progress(there, stage, found, job) if state == "running" else "",
        metric=_metric(found),
        elapsed=job.elapsed if job and state == "running" else _seconds(found),
    )


def _of_experiment(name: str, state: str, reason: str) -> str:
    """The reason of a stage whose job is of another experiment; nothing runs one that ended."""
    if state in ("blocked", "pending"):
        return reason
    told = ", ".join(filter(None, (reason, f"job of experiment {name}")))
    return f"{told}; submit again" if state in ENDED else told


def _not_done(
    view: _View, stage: Stage, found: Standing, job: Job | None, above: Mapping[str, StageStatus]
) -> tuple[str, str]:
    """State and reason of a stage that is neither done nor skipped."""
    task = view.tasks.get(stage.name)
    if task is not None and job is not None and job.live:
        return _live(view, task, job, stage, above)
    for lock in (Lock(directory.path) for directory in _directories(found)):
        if holder := lock.holder():
            return "running", _whose("job" if holder.job else "process", lock.owner())
    if stage.name in view.left and not _blocked(stage, above):
        return "pending", _when_submitted(view)
    record = atomic.read_object(view.folder / "stages" / f"{stage.name}.json") or {}
    if task is not None and record.get("job") not in (None, task.id):
        record = {}  # of an earlier submission
    if record.get("state") == "failed":
        reason = str(record["reason"])
        if task is not None and record.get("signal"):
            told = _silent(view, task, job, reason, begun=True)  # SLURM may know who sent it
            return told if told[0] != "pending" else ("failed", reason)
        return "failed", reason
    if record.get("state") in ("done", "skipped"):
        return "pending", _vanished(stage, found)
    if blocked := _blocked(stage, above):
        return "blocked", blocked
    if task is not None:
        if not view.answered:
            return "waiting", "SLURM does not answer"
        return _silent(view, task, job, str(record.get("reason", "")), begun=bool(record))
    if record.get("state") == "running":
        return "stopped", "its supervisor was killed; launch it again"
    return "pending", str(record.get("reason", "")) or "not started"


def _blocked(stage: Stage, above: Mapping[str, StageStatus]) -> str:
    """The parent without which a stage cannot run, and how it ended; "" if there is none."""
    for parent in stage.parents:
        if parent in above and above[parent].state in ("failed", "blocked", "cancelled"):
            return f"{parent} {above[parent].state}"
    return ""


def _when_submitted(view: _View) -> str:
    """Who submits a stage that is left: the report, or nobody if it is not queued."""
    report = view.tasks.get(REPORT.name)
    job = view.queue.get(report.id) if report else None
    goes_on = report is not None and (not view.answered or (job is not None and job.live))
    return "submitted with the next portion" if goes_on else "left: submit again"


def _vanished(stage: Stage, found: Standing) -> str:
    """Of a stage that ended well and is not done: its files are gone, or those of its parent."""
    if found.run is None and found.evaluation is None and stage.parent:
        return f"was done, but what it started from, {stage.parent}, is gone; submit again"
    return "was done, but its files are gone; submit again"


def _live(
    view: _View, task: Task, job: Job, stage: Stage, above: Mapping[str, StageStatus]
) -> tuple[str, str]:
    """State and reason of a stage whose job is pending or running."""
    whose = f"job of {job.user}" if job.user and job.user != _me() else ""
    if job.state not in WAITS:
        where = f"on {job.node}" if job.node else ""
        return "running", ", ".join(filter(None, (where, whose)))
    if job.reason == "Dependency":
        return "waiting", _for_what(view, stage, above)
    told = reasons.words(job, released=task.token not in view.unreleased)
    return "waiting", ", ".join(filter(None, (told, whose)))


def _for_what(view: _View, stage: Stage, above: Mapping[str, StageStatus]) -> str:
    """What a stage waits for: parents, or another experiment that has its run."""
    ended = ("done", "skipped")
    missing = [p for p in stage.parents if p in above and above[p].state not in ended]
    if missing:
        return f"for {', '.join(missing)}"
    other = view.others.get(stage.name)
    return f"for {other.task.id}, the same run in {other.experiment}" if other else "dependency"


def _me() -> str:
    """The name of this user."""
    return _name(os.getuid())


def _name(user: int) -> str:
    """The name of a user; their number if they have none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _whose(what: str, user: int | None) -> str:
    """`job of nobody`, of another user; "" of this one."""
    return "" if user in (None, os.getuid()) else f"{what} of {_name(user or 0)}"


_WORDS = (
    (r"oom.kill|exceeded (?:job )?memory limit|Out Of Memory", "failed", "out of memory"),
    (r"DUE TO TIME LIMIT", "failed", "time limit reached before it saved"),
    (r"DUE TO NODE FAILURE", "failed", "node failure"),
    (r"DUE TO PREEMPTION", "stopped", "preempted"),
    (r"CANCELLED AT", "cancelled", "cancelled"),
    (re.escape(STOPPED_IN_SETUP), "failed", STOPPED_IN_SETUP),
    (re.escape(ENDED_IN_SETUP), "stopped", ENDED_IN_SETUP),
)
"""The words of an output, and what they mean; SLURM's own say more than those of our script."""
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
    lines = progress.tail(output).splitlines()
    said = "\n".join(line for line in lines if "DUE TO JOB REQUEUE" not in line)
    known = job.state if job is not None else view.accounted.get(task.id, "")
    if known not in ("CANCELLED", "PREEMPTED"):
        for words, state, reason in _WORDS:
            if re.search(words, said):
                return state, reason
    if known in _STATES:
        return _STATES[known]
    if whose := "" if known else _whose("job", view.users.get(task.token)):
        return "pending", f"SLURM does not show whether the {whose} waits; submit again if not"
    if not said and not begun and known in ("", "COMPLETED"):
        return "cancelled", "left the queue before it started"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    return "failed", recorded or f"the job ended without a record{': ' + last if last else ''}"


def _progress(view: _View, stage: Stage, found: Standing, job: Job | None) -> str:
    """How far a stage has come that its job runs, or, without one, somebody else."""
    if job is not None and job.live:
        return progress.of_job(view.folder, stage.name)
    return progress.of_directories(view.home, stage.name, _directories(found))


def _metric(found: Standing) -> str:
    """pass@1 if it is known, else the last loss or perplexity."""
    scores = typed.scores(found.evaluation.path / "scores.json") if found.evaluation else None
    if scores:
        k, first = next(iter(scores["pass_at_k"].items()))
        return f"pass@{k} {first['estimate']:.3f}"
    if found.run is None:
        return ""
    for line in reversed(progress.tail(found.run.path / "metrics.jsonl").splitlines()):
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
    phases = [p for d in _directories(found) for p in d.status["phases"].values()]
    total = round(sum(phase.get("seconds", 0.0) for phase in phases))
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}" if total else ""


def _directories(found: Standing) -> list[RunDirectory]:
    return [each for each in (found.run, found.evaluation) if each is not None]


def table(found: Sequence[StageStatus], width: int = 0) -> str:
    """The statuses as a text table; where it is wider than `width`, everything but the states is
    below the stages, and nothing is cut.
    """
    lines = _columns(found, ("stage", "state", "job", "progress", "metric", "elapsed", "reason"))
    if not width or all(len(line) <= width for line in lines):
        return "\n".join(lines)
    head, *rows = _columns(found, ("state", "job", "elapsed", "stage"))
    told = [head]
    for entry, row in zip(found, rows, strict=True):
        more = "; ".join(filter(None, (entry.progress, entry.metric, entry.reason)))
        told += [row, *_indented(more, width)]
    return "\n".join(told)


def _indented(text: str, width: int) -> list[str]:
    """Lines of a text that is below a row; paths and commands stay whole."""
    return textwrap.wrap(
        text,
        width,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _columns(found: Sequence[StageStatus], heads: Sequence[str]) -> list[str]:
    """A line of heads and a line for each stage, with the columns that hold anything."""
    if not found:
        return []
    rows = [[str(getattr(entry, head)) for head in heads] for entry in found]
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    widths = {i: max(len(heads[i]), *(len(row[i]) for row in rows)) for i in used}
    lines = ["  ".join(row[i].ljust(widths[i]) for i in used) for row in (list(heads), *rows)]
    return [line.rstrip() for line in lines]
