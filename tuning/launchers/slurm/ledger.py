"""Which job runs which stage of an experiment: slurm/jobs.json in the folder of its report.

Written before an array is submitted, when its job id is known, and when it is released, so that the
next submission can finish one that was interrupted at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tuning.plan import Stage
from tuning.runs import atomic

REPORT = Stage(name="report", role="report", hash="", script="cli.py", phases=("report",))
"""The last stage, which writes the report."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage as a task of an array."""

    stage: str
    key: str
    token: str
    number: int
    index: int

    @property
    def id(self) -> str:
        """As SLURM writes it: `12_3`."""
        return f"{self.number}_{self.index}"


@dataclass(kw_only=True)
class Array:
    """Stages that are submitted by one call of sbatch."""

    token: str
    kind: str
    stages: list[str]
    keys: list[str]
    number: int | None = None
    """The job id; None until sbatch has returned it."""
    released: bool = False
    """Whether its tasks have their dependencies and may start."""
    code: str = ""
    """The snapshot that it runs."""
    time: float = 0.0
    asked: str = ""
    """Digest of the resources that it asks for."""
    resources: dict[str, Any] = field(default_factory=dict)
    """The resources that it asks for."""
    works: list[list[str]] = field(default_factory=list)
    """What each of its stages does (`Stage.work`)."""
    user: int | None = None
    """Who submitted it."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Array:
        """Parse an entry of jobs.json; what another version added is ignored."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: each for key, each in value.items() if key in known})

    @property
    def tasks(self) -> Iterator[Task]:
        """Its tasks; none before it is submitted."""
        if self.number is None:
            return
        for index, (stage, key) in enumerate(zip(self.stages, self.keys, strict=True)):
            yield Task(stage=stage, key=key, token=self.token, number=self.number, index=index)


@dataclass
class Jobs:
    """Reads and writes jobs.json of one experiment."""

    folder: Path
    _read: tuple[tuple[int, int] | None, list[Array]] = field(default=(None, []), repr=False)

    @property
    def path(self) -> Path:
        """The path of jobs.json."""
        return self.folder / "slurm" / "jobs.json"

    def changed(self) -> tuple[int, int]:
        """A value that changes whenever jobs.json is rewritten."""
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def arrays(self) -> list[Array]:
        """Every array that was ever submitted, the oldest first."""
        changed = self.changed()
        if changed != self._read[0]:
            found: dict[str, Any] = atomic.read_object(self.path) or {"arrays": []}
            self._read = (changed, [Array.from_json(entry) for entry in found["arrays"]])
        return self._read[1]

    def write(self, arrays: Sequence[Array]) -> None:
        """Replace jobs.json, atomically; an array is a line of it."""
        lines = ",\n".join(json.dumps(vars(array)) for array in arrays)
        atomic.write_text(self.path, f'{{"arrays": [\n{lines}\n]}}\n')

    def users(self) -> set[int]:
        """Everybody who submitted a part of the experiment."""
        return {array.user for array in self.arrays() if array.user is not None}

    def latest(self) -> dict[str, Task]:
        """{stage: its most recent task}."""
        return {task.stage: task for array in self.arrays() for task in array.tasks}

    def task_of(self, stage: str) -> Task | None:
        """The most recent task of a stage."""
        return self.latest().get(stage)
