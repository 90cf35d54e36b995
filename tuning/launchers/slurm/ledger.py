"""Which job runs which stage of an experiment: slurm/jobs.json in the folder of its report.

Written before an array is submitted, and again when its number is known and when it is released, so
that a submission that breaks at any moment is taken up by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuning.plan import Stage
from tuning.runs import atomic

REPORT = Stage(name="report", role="report", hash="", script="cli.py", phases=("report",))
"""The stage behind the others that writes the report."""


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
    """Stages that one call of sbatch submits."""

    token: str
    kind: str
    stages: list[str]
    keys: list[str]
    number: int | None = None
    """The job id; None until sbatch has said it."""
    released: bool = False
    """Whether its tasks know what they wait for and may start."""
    code: str = ""
    """The snapshot that it runs."""
    time: float = 0.0

    @property
    def tasks(self) -> Iterator[Task]:
        """Its tasks, once it is submitted."""
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
        """Where it stands."""
        return self.folder / "slurm" / "jobs.json"

    def changed(self) -> tuple[int, int]:
        """What differs whenever it is written anew."""
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def arrays(self) -> list[Array]:
        """Every array that was ever submitted, the oldest first."""
        changed = self.changed()
        if changed != self._read[0]:
            found: dict[str, Any] = atomic.read_json(self.path) or {"arrays": []}
            self._read = (changed, [Array(**entry) for entry in found["arrays"]])
        return self._read[1]

    def write(self, arrays: Sequence[Array]) -> None:
        """Replace it, whole."""
        atomic.write_json(self.path, {"arrays": [asdict(array) for array in arrays]})

    def latest(self) -> dict[str, Task]:
        """{stage: the task that it was submitted as last}."""
        return {task.stage: task for array in self.arrays() for task in array.tasks}

    def task_of(self, stage: str) -> Task | None:
        """The last task of a stage."""
        return self.latest().get(stage)
