"""Stages whose run is a live job of another experiment in the same TUNING_HOME.

Two experiments often share an SFT run. The second one submits no job that would only wait for the
lock of the run in its own allocation: what needs the run waits for the job of the first. The first
is told of its followers, so that its SFT job also releases their forks.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning.launchers.slurm.client import Job
from tuning.launchers.slurm.ledger import Array, Jobs, Task
from tuning.plan import Stage


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A live task of another experiment."""

    task: Task
    job: Job
    folder: Path
    """The folder of the report of its experiment."""
    same: bool
    """Whether it does all that the stage is to do, and not only a part."""
    alone: bool
    """Whether it is the only task of its array."""

    @property
    def experiment(self) -> str:
        """The name of its experiment."""
        return self.folder.name

    @property
    def condition(self) -> str:
        """The job that a dependency names."""
        return str(self.task.number) if self.alone else self.task.id


@dataclass(frozen=True, kw_only=True)
class Former:
    """A task of another experiment, whatever became of it."""

    task: Task
    folder: Path
    """The folder of the report of its experiment."""
    time: float
    """When it was submitted."""
    user: int | None
    """Who submitted it."""


def elsewhere(
    stages: Iterable[Stage], folder: Path, queue: Callable[[Iterable[int]], Sequence[Job]]
) -> dict[str, Elsewhere]:
    """{stage: the live task of another experiment than that of `folder` that does its work}.

    Only tasks that were released count: what they wait for is settled, so that no two experiments
    can wait for each other. SLURM is asked only if another experiment ever had such a task.
    """
    candidates = _candidates(stages, folder)
    if not candidates:
        return {}
    users = {array.user for _, array, *_ in candidates if array.user is not None}
    live = {(job.id, job.token): job for job in queue(users) if job.live}
    found: dict[str, Elsewhere] = {}
    for where, array, task, stage, same in candidates:
        job = live.get((task.id, task.token))
        if job is None or (stage.name in found and found[stage.name].same):
            continue
        alone = len(array.stages) == 1
        found[stage.name] = Elsewhere(task=task, job=job, folder=where, same=same, alone=alone)
    return found


def latest(stages: Iterable[Stage], folder: Path) -> dict[str, Former]:
    """{stage: the newest task of another experiment than that of `folder` that does or did all of
    its work}.
    """
    found: dict[str, Former] = {}
    for where, array, task, stage, same in _candidates(stages, folder):
        if same and (stage.name not in found or found[stage.name].time <= array.time):
            found[stage.name] = Former(task=task, folder=where, time=array.time, user=array.user)
    return found


def tasks_of(stages: Iterable[Stage], folder: Path) -> tuple[list[Task], list[Array]]:
    """The tasks of other experiments that do or did work of stages, and their arrays."""
    found = _candidates(stages, folder)
    return [task for _, _, task, *_ in found], [array for _, array, *_ in found]


def _candidates(
    stages: Iterable[Stage], folder: Path
) -> list[tuple[Path, Array, Task, Stage, bool]]:
    """Released tasks of other experiments that do work of stages, and whether they do all of it."""
    wanted: dict[str, list[Stage]] = defaultdict(list)
    for stage in stages:
        for part in stage.work:
            wanted[part].append(stage)
    return [
        (where, array, task, stage, set(stage.work) <= set(work))
        for where, array in _others(folder)
        for task, work in zip(array.tasks, array.works, strict=False)
        for part in work
        for stage in wanted.get(part, ())
    ]


def _others(folder: Path) -> list[tuple[Path, Array]]:
    """The released arrays of all other experiments."""
    places = sorted(path.parent.parent for path in folder.parent.glob("*/slurm/jobs.json"))
    return [
        (where, array)
        for where in places
        if where != folder
        for array in Jobs(where).arrays()
        if array.released
    ]


def follow(leader: Path, folder: Path) -> None:
    """Tell the experiment at `leader` that stages of the one at `folder` wait for its job."""
    with contextlib.suppress(OSError):
        place = leader / "slurm" / "followers" / folder.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def told_to_followers(leader: Path) -> str:
    """What to do about the experiments that may wait for cancelled jobs of one; "" for none."""
    names = ", ".join(sorted(folder.name for folder in followers(leader)))
    return f"submit these too if they are not done, they share its jobs: {names}" if names else ""


def followers(leader: Path) -> list[Path]:
    """The folders of the experiments that follow the one at `leader`."""
    with contextlib.suppress(OSError):
        return [leader.parent / path.name for path in (leader / "slurm" / "followers").iterdir()]
    return []
