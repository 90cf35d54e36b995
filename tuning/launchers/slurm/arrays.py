"""The arrays of a submission: stages of one kind that ask for the same resources; with the script
and the list of stages of each, as files.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tuning import config as site
from tuning.launchers.slurm.ledger import Array
from tuning.launchers.slurm.resources import Resources
from tuning.launchers.slurm.script import ArrayJob, render
from tuning.plan import KINDS, Stage
from tuning.runs import atomic
from tuning.runs.identity import FORMAT


class Arrays:
    """Makes the arrays of an experiment; `asked` are the resources of each of its stages."""

    def __init__(
        self,
        folder: Path,
        stages: Mapping[str, Stage],
        asked: Mapping[str, Resources],
        *,
        wandb: str,
    ) -> None:
        self.folder = folder
        self.wandb = wandb
        self._stages = stages
        self._asked = asked

    def of(self, stages: Sequence[Stage], largest: int, number: str) -> list[Array]:
        """One array for all stages of a kind that ask for the same resources, split where it would
        exceed the cluster's limit; `number` is that of the submission.
        """
        found = []
        for kind in KINDS:
            parts = self._parts([stage for stage in stages if stage.kind == kind], largest)
            for part, own in enumerate(parts, 1):
                suffix = f"-{part}" if len(parts) > 1 else ""
                found.append(
                    Array(
                        token=f"{self.folder.name}.{number}.{kind}{suffix}",
                        kind=kind,
                        stages=[stage.name for stage in own],
                        keys=[stage.key for stage in own],
                        works=[list(stage.work) for stage in own],
                        asked=self._asked[own[0].name].digest,
                        resources=asdict(self._asked[own[0].name]),
                        user=os.getuid(),
                    )
                )
        return found

    def _parts(self, stages: Sequence[Stage], largest: int) -> list[list[Stage]]:
        """Stages of one kind by their resources, at most `largest` in each part."""
        groups: dict[Resources, list[Stage]] = defaultdict(list)
        for stage in stages:
            groups[self._asked[stage.name]].append(stage)
        return [
            group[start : start + largest]
            for group in groups.values()
            for start in range(0, len(group), largest)
        ]

    def write(self, array: Array, code: Path) -> None:
        """Write the script of an array and the file that lists its stages."""
        atomic.write_json(
            self._tasks_path(array),
            {
                "format": FORMAT,
                "folder": str(self.folder),
                "wandb": self.wandb,
                "stages": [vars(self._stages[name]) for name in array.stages],
            },
        )
        atomic.write_text(self.script_path(array), self.script(array, code))

    def script_path(self, array: Array) -> Path:
        """The script that sbatch is given."""
        return self.folder / "slurm" / f"{array.token}.sbatch"

    def _tasks_path(self, array: Array) -> Path:
        return self.folder / "slurm" / f"{array.token}.json"

    def script(self, array: Array, code: Path) -> str:
        """The text of the script; its jobs run the snapshot `code`."""
        from tuning.launchers.prefetch import cache_folders, offline_environment

        resources = self._asked[array.stages[0]]
        environment = {
            "TUNING_HOME": str(site.home()),
            "TUNING_CODE": str(code),
            "TUNING_PYTHON": (not resources.container and resources.python) or sys.executable,
            "TUNING_PROCESSES": str(resources.processes),
            **(offline_environment() if resources.offline else {}),
        }
        job = ArrayJob(
            token=array.token,
            count=len(array.stages),
            code=code,
            tasks=self._tasks_path(array),
            output=self.folder / "slurm",
            folders=(str(site.home()), *cache_folders()),
            environment=environment,
        )
        return render(job, resources)
