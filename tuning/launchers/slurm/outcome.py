"""What a submission needs, and what it says that it did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tuning.launchers.slurm.client import Job, Node
from tuning.launchers.slurm.ledger import Task
from tuning.launchers.slurm.resources import Resources
from tuning.launchers.slurm.shared import Elsewhere
from tuning.plan import Stage

Live = dict[str, tuple[Task, Job]]
"""{stage: its task that waits or runs, and SLURM's view of it}."""
NEW = Job(id="0_0", state="PENDING")
"""SLURM's view of a task that was just submitted."""


class Door(Protocol):
    """What a submission needs of SLURM; `tuning.launchers.slurm.client.Slurm` is one."""

    def refusal(self, script: str, *, policy: bool = False) -> str: ...
    def nodes(self) -> list[Node]: ...
    def submit(self, script: Path) -> int: ...
    def depend(self, number: int, indices: Sequence[int], condition: str) -> None: ...
    def release(self, jobs: Iterable[int | str]) -> None: ...
    def cancel(self, jobs: Sequence[str], *, waiting: bool = False) -> None: ...
    def queue(self, users: Iterable[int] = ()) -> list[Job]: ...
    def count(self) -> int: ...
    def max_array_size(self) -> int: ...
    def pause(self, seconds: float) -> None: ...
    def answers(self) -> bool: ...


class Asked(Protocol):
    """What stages ask for; `tuning.launchers.slurm.resources.Cluster` is one."""

    def of(self, stage: Stage) -> Resources: ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a plan is submitted."""

    dependency: str | None = None
    """The dependency of the first stages, as sbatch takes it."""
    wandb: str = "off"
    max_submit: int | None = None
    """How many jobs may be queued or running at a time; the rest is submitted later."""
    only: frozenset[str] | None = None
    """Submit at most these stages, and of them those whose parents did not fail."""


@dataclass(kw_only=True)
class Outcome:
    """What a submission did."""

    new: dict[str, Task] = field(default_factory=dict)
    """Tasks that it submitted."""
    queued: dict[str, Task] = field(default_factory=dict)
    """Tasks that were queued already."""
    ended: dict[str, tuple[str, str]] = field(default_factory=dict)
    """State and reason of stages that have ended."""
    shared: dict[str, Elsewhere] = field(default_factory=dict)
    """Stages whose work is a live task of another experiment."""
    dropped: dict[str, Task] = field(default_factory=dict)
    """Waiting tasks to cancel: they ask for other resources, or depend on a job that is gone."""
    cancelled: dict[str, Task] = field(default_factory=dict)
    """Tasks that waited and were cancelled for new ones; put back where SLURM refuses those."""
    replaced: dict[str, Task] = field(default_factory=dict)
    """Tasks that were cancelled because their stages now ask for other resources."""
    outdated: dict[str, Task] = field(default_factory=dict)
    """Tasks that run with other resources than their stages now ask for."""
    ending: list[str] = field(default_factory=list)
    """Jobs of unfinished stages that take long to end; what becomes of them is not known yet."""
    left: list[Stage] = field(default_factory=list)
    """Stages that are left for the next portion."""
    goes_on: bool = False
    """Whether a job will submit what is left."""
    follows: bool = False
    """Whether a report waits: the one that runs, if any, is not the last."""
