"""What the job of a stage waits for: its parents' jobs, of this or of another experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tuning import config as site
from tuning.launchers.slurm.ledger import REPORT, Array, Task
from tuning.launchers.slurm.shared import Elsewhere
from tuning.plan import Plan, Stage, sweetspot_ready


class Dependencies:
    """The dependencies of a plan; `first` is that of the stages without parents, as sbatch takes
    it.
    """

    def __init__(self, plan: Plan, first: str | None) -> None:
        self.plan = plan
        self.first = first or ""
        self._home = site.home()

    def words(self, name: str, ended: Iterable[str], others: Mapping[str, Elsewhere]) -> str:
        """The dependency of a stage for a dry run, where some stages have ended and other
        experiments have some in the queue.
        """
        if name == REPORT.name:
            return "afterany of all others"
        stage = self.plan.stage(name)
        own = others.get(name)
        same = f"afterany {own.task.id}, the same run in {own.experiment}" if own else ""
        above = [parent for parent in self.above(stage) if parent not in set(ended)]
        if not above or sweetspot_ready(self.plan, stage, self._home):
            return same or self.first
        named = [
            f"{parent} ({other.task.id} of experiment {other.experiment})"
            if (other := others.get(parent)) is not None and other.same
            else parent
            for parent in above
        ]
        spot = ", or as soon as its checkpoint exists" if stage.sweetspot else ""
        return "; ".join(filter(None, (f"afterok {', '.join(named)}{spot}", same)))

    def conditions(
        self,
        tasks: Sequence[Task],
        waiting: Mapping[str, Task],
        arrays: Sequence[Array],
        others: Mapping[str, Elsewhere],
    ) -> dict[str, list[int]]:
        """{dependency as SLURM writes it, "" for none: the tasks of an array that have it}.
        `waiting` are the tasks of this experiment, `others` those of other experiments that have a
        stage's run.
        """
        found: dict[str, list[int]] = defaultdict(list)
        for task in tasks:
            found[self._condition(task, waiting, arrays, others)].append(task.index)
        return found

    def _condition(
        self,
        task: Task,
        waiting: Mapping[str, Task],
        arrays: Sequence[Array],
        others: Mapping[str, Elsewhere],
    ) -> str:
        """The dependency of one task."""
        if task.stage == REPORT.name:
            return self._all(waiting, others)
        stage = self.plan.stage(task.stage)
        own = others.get(stage.name)
        same_run = _after("afterany", [own.condition] if own else [])
        if sweetspot_ready(self.plan, stage, self._home):
            return same_run or self.first
        alone = {array.number for array in arrays if len(array.stages) == 1}
        above = []
        for name in self.above(stage):
            if (parent := waiting.get(name)) is not None:
                above.append(str(parent.number) if parent.number in alone else parent.id)
            elif name in others and others[name].same:
                above.append(others[name].condition)
        return ",".join(filter(None, (_after("afterok", above), same_run))) or self.first

    def above(self, stage: Stage) -> list[str]:
        """The parents of a stage that have jobs; for a parent without work, its own parents."""
        found = []
        for name in stage.parents:
            parent = self.plan.stage(name)
            found += [name] if parent.has_work else self.above(parent)
        return list(dict.fromkeys(found))

    def _all(self, waiting: Mapping[str, Task], others: Mapping[str, Elsewhere]) -> str:
        """Everything but the report."""
        numbers = sorted({t.number for t in waiting.values() if t.stage != REPORT.name})
        theirs = [other.condition for name, other in others.items() if name not in waiting]
        return _after("afterany", [*map(str, numbers), *theirs])


def _after(kind: str, jobs: Sequence[str]) -> str:
    return f"{kind}:{':'.join(jobs)}" if jobs else ""
