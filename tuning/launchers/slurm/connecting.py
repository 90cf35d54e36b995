"""Lets submitted arrays go: each task gets its dependency, then all are released. What SLURM
refuses on the way is cancelled and forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuning.launchers.slurm.client import Refused
from tuning.launchers.slurm.dependencies import Dependencies
from tuning.launchers.slurm.ledger import REPORT, Array, Jobs
from tuning.launchers.slurm.outcome import NEW, Door, Live, Outcome
from tuning.launchers.slurm.shared import Elsewhere, follow


class Connection:
    """Connects and releases the arrays of an experiment; `folder` is that of its report."""

    def __init__(self, slurm: Door, folder: Path, dependencies: Dependencies) -> None:
        self.slurm = slurm
        self.folder = folder
        self.jobs = Jobs(folder)
        self.dependencies = dependencies

    def connect(
        self, arrays: Sequence[Array], live: Live, outcome: Outcome, theirs: Mapping[str, Elsewhere]
    ) -> None:
        """Set the dependencies of the tasks of all unreleased arrays, then release them.

        It is set for every task, even to nothing: this makes SLURM keep a separate record of the
        task. Otherwise it forgets a task that is cancelled early, and treats it as done.
        """
        unreleased = [array for array in arrays if not array.released]
        if not unreleased:
            return
        waiting = outcome.queued | outcome.new
        if REPORT.name in live:
            waiting[REPORT.name] = live[REPORT.name][0]
        under_way = {task.id for task, job in live.values() if job is not NEW and not job.held}
        going = {task.id for task in waiting.values()} - under_way
        others = {n: o for n, o in theirs.items() if n not in outcome.ended}
        self._cancel_strangers(live, going)
        try:
            for array in unreleased:
                tasks = [task for task in array.tasks if task.id in going]
                conditions = self.dependencies.conditions(tasks, waiting, arrays, others)
                for condition, indices in conditions.items():
                    self.slurm.depend(array.number or 0, indices, condition)
            held = [a for a in unreleased if any(task.id in going for task in a.tasks)]
            self.slurm.release([array.number or 0 for array in held])
        except Refused as refusal:
            self._take_back(arrays, going & {t.id for a in unreleased for t in a.tasks}, under_way)
            raise Refused(
                f"SLURM refuses the jobs of '{self.folder.name}': {refusal} They were "
                "cancelled; change what they ask for (flags, or cluster.yaml) and submit again."
            ) from None
        for array in unreleased:
            array.released = True
        self.jobs.write(arrays)
        for other in theirs.values():
            follow(other.folder, self.folder)

    def _take_back(self, arrays: Sequence[Array], going: set[str], under_way: set[str]) -> None:
        """Cancel the tasks of arrays that could not be connected or released, and forget them."""
        self.slurm.cancel(sorted(going))
        kept = [a for a in arrays if a.released or any(t.id in under_way for t in a.tasks)]
        for array in kept:
            array.released = True
        self.jobs.write(kept)

    def _cancel_strangers(self, live: Live, going: set[str]) -> None:
        """Cancel held tasks of stages that left the plan, before their array is released."""
        left = [task.id for task, job in live.values() if job.held and task.id not in going]
        if left:
            self.slurm.cancel(left)
