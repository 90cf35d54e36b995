"""Submits the stages of a plan that are neither done nor queued, each once, whatever fails.

Stages of one kind that ask for the same resources are one job array, submitted held; then each task
gets its dependency (afterok on the task of its parent, none if that is done); then all arrays are
released. Every array is recorded in jobs.json before it is submitted: the next submission finishes
an interrupted one, and recognises its arrays by their tokens. Of more stages than the cluster takes
at once, the first are submitted (portions.py).
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from tuning import config as site
from tuning.launchers.slurm import portions, snapshot
from tuning.launchers.slurm.client import WAITS, Job, TooMany
from tuning.launchers.slurm.ledger import REPORT, Array, Jobs, Task
from tuning.launchers.slurm.resources import Resources
from tuning.launchers.slurm.script import ArrayJob, render
from tuning.plan import KINDS, Plan, Stage, save_plan, standing, sweetspot_ready
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.runs.lock import Lock


class Door(Protocol):
    """What a submission needs of SLURM; `tuning.launchers.slurm.client.Slurm` is one."""

    def submit(self, script: Path) -> int: ...
    def depend(self, number: int, indices: Sequence[int], condition: str) -> None: ...
    def release(self, numbers: Sequence[int]) -> None: ...
    def cancel(self, jobs: Sequence[str]) -> None: ...
    def queue(self) -> list[Job]: ...
    def max_array_size(self) -> int: ...


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
    """What a submission did: new tasks, tasks that were queued already, ended stages, and those
    that are left for the next portion.
    """

    new: dict[str, Task] = field(default_factory=dict)
    queued: dict[str, Task] = field(default_factory=dict)
    ended: dict[str, tuple[str, str]] = field(default_factory=dict)
    left: list[Stage] = field(default_factory=list)
    goes_on: bool = False
    """Whether a job will submit what is left."""


class Submission:
    """Submits a plan; `run()` may be called again at any time."""

    def __init__(
        self,
        plan: Plan,
        cluster: Asked,
        slurm: Door,
        options: Options | None = None,
    ) -> None:
        self.plan = plan
        self.cluster = cluster
        self.slurm = slurm
        self.options = options or Options()
        self.folder = site.reports_dir() / plan.experiment
        self.jobs = Jobs(self.folder)
        self._stages = {stage.name: stage for stage in (*plan.stages, REPORT)}
        self._asked = {
            name: cluster.of(stage) for name, stage in self._stages.items() if stage.has_work
        }

    def run(self) -> Outcome:
        """Submit what is neither done nor queued."""
        with Lock(self.folder).holding():
            arrays = self._found()
            live = self._live(arrays)
            outcome = self._sorted(live)
            missing = self._portion(self._to_submit(outcome), live, outcome)
            broken = any(not array.released for array in arrays)
            if missing or (broken and REPORT.name not in live):
                save_plan(self.folder, self.plan)
                self._drop_report(live)
                arrays, missing = self._submit_what_fits(arrays, missing, outcome)
                names = {stage.name for stage in missing}
                latest = {task.stage: task for array in arrays for task in array.tasks}
                outcome.new = {name: latest[name] for name in names}
                live |= {REPORT.name: (latest[REPORT.name], _NEW)}
            self._connect(arrays, live, outcome)
            outcome.goes_on = REPORT.name in live
            options = {name: getattr(self.options, name) for name in _LASTING}
            portions.write_rest(self.folder, outcome.left, self._asked, options)
            return outcome

    def preview(self, max_array_size: int) -> list[tuple[Array, str]]:
        """The arrays that would be submitted if nothing were queued, and their scripts."""
        missing = self._to_submit(self._sorted({}))
        if not missing:
            return []
        arrays = self._arrays([*missing, REPORT], max_array_size, number="1")
        return [(array, self._script(array, Path("SNAPSHOT"))) for array in arrays]

    def words(self, name: str) -> str:
        """The dependency of a stage, for a dry run."""
        if name == REPORT.name:
            return "afterany of all others"
        ended = self._sorted({}).ended
        above = [parent for parent in self._above(self._stages[name]) if parent not in ended]
        if not above or sweetspot_ready(self.plan, self._stages[name], site.home()):
            return self.options.dependency or ""
        spot = ", or as soon as its checkpoint exists" if self._stages[name].sweetspot else ""
        return f"afterok {', '.join(above)}{spot}"

    def _found(self) -> list[Array]:
        """The arrays of jobs.json; one whose job id is unknown is looked up by its token."""
        arrays = self.jobs.arrays()
        if all(array.number is not None for array in arrays):
            return arrays
        numbers = {job.token: job.number for job in self.slurm.queue() if job.live}
        for array in arrays:
            array.number = array.number or numbers.get(array.token)
        kept = [array for array in arrays if array.number is not None]
        self.jobs.write(kept)
        return kept

    def _live(self, arrays: Sequence[Array]) -> dict[str, tuple[Task, Job]]:
        """{stage: its pending or running task, and SLURM's view of it}."""
        if not arrays:
            return {}
        tokens = {array.token for array in arrays}
        seen = {job.id: job for job in self.slurm.queue() if job.token in tokens}
        doomed = [job.id for job in seen.values() if job.doomed]
        if doomed:
            self.slurm.cancel(doomed)
        found = {}
        for array in arrays:
            for task in array.tasks:
                job = seen.get(task.id)
                if job is not None and job.live:
                    found[task.stage] = (task, job)
        return found

    def _sorted(self, live: Mapping[str, tuple[Task, Job]]) -> Outcome:
        """What is queued and what has ended; a task that depends on a job that is gone is neither,
        and is cancelled.
        """
        outcome = Outcome()
        for stage in self.plan.stages:
            if stage.name in live:
                task, job = live[stage.name]
                self._require_same(stage, task)
                if job.state not in WAITS or self._can_start(stage, outcome):
                    outcome.queued[stage.name] = task
                    continue
                self.slurm.cancel([task.id])
            found = standing(self.plan, stage, site.home())
            if found.state in ("done", "skipped") or not stage.has_work:
                outcome.ended[stage.name] = (found.state, found.reason)
        return outcome

    def _require_same(self, stage: Stage, task: Task) -> None:
        if task.key != stage.key:
            raise UserError(
                f"'{stage.name}' is queued with other settings as job {task.id}; wait for it, or "
                f"cancel it: tuning cancel {self.plan.experiment}"
            )

    def _can_start(self, stage: Stage, outcome: Outcome) -> bool:
        """Whether all dependencies of a stage are done or queued."""
        known = outcome.queued.keys() | outcome.ended.keys()
        return set(self._above(stage)) <= known or sweetspot_ready(self.plan, stage, site.home())

    def _to_submit(self, outcome: Outcome) -> list[Stage]:
        return [
            stage
            for stage in self.plan.stages
            if stage.name not in outcome.queued and stage.name not in outcome.ended
        ]

    def _portion(
        self, missing: list[Stage], live: Mapping[str, tuple[Task, Job]], outcome: Outcome
    ) -> list[Stage]:
        """The first of the missing stages that may be submitted now; the others are left."""
        if self.options.only is not None:
            going = outcome.queued.keys() | outcome.ended.keys()
            chosen = portions.unblocked(self.plan.stages, self.options.only, going)
            missing = [stage for stage in missing if stage.name in chosen]
        if self.options.max_submit is None:
            return missing
        report = live.get(REPORT.name)
        dropped = report is not None and report[1].state in WAITS
        taken = sum(job.live for job in self.slurm.queue()) - dropped
        room = max(0, self.options.max_submit - taken - 1)
        outcome.left = missing[room:]
        return missing[:room]

    def _submit_what_fits(
        self, arrays: list[Array], missing: list[Stage], outcome: Outcome
    ) -> tuple[list[Array], list[Stage]]:
        """All arrays, and the stages that were submitted: as many as SLURM takes, by halves."""
        while True:
            try:
                return self._submit(arrays, missing), missing
            except TooMany:
                if len(missing) < 2:
                    raise
                half = len(missing) // 2
                outcome.left = [*missing[half:], *outcome.left]
                missing = missing[:half]

    def _drop_report(self, live: Mapping[str, tuple[Task, Job]]) -> None:
        """Cancel a queued report, which does not wait for the new stages."""
        if REPORT.name in live and live[REPORT.name][1].state in WAITS:
            self.slurm.cancel([live[REPORT.name][0].id])

    def _submit(self, arrays: list[Array], missing: Sequence[Stage]) -> list[Array]:
        """Submit arrays, held; each is recorded before and after its sbatch."""
        code = snapshot.take()
        before = (int(array.token.split(".")[-2].partition("-")[0]) for array in arrays)
        number = f"{1 + max(before, default=0)}-{secrets.token_hex(3)}"
        new = self._arrays([*missing, REPORT], self.slurm.max_array_size(), number)
        for array in new:
            array.code, array.time = str(code), time.time()
            self._write_files(array, code)
        everything = [*arrays, *new]
        self.jobs.write(everything)
        try:
            for array in new:
                array.number = self.slurm.submit(self._script_path(array))
                self.jobs.write(everything)
        except UserError:
            self.slurm.cancel([str(array.number) for array in new if array.number is not None])
            self.jobs.write(arrays)
            raise
        return everything

    def _arrays(self, stages: Sequence[Stage], largest: int, number: str) -> list[Array]:
        """One array for all stages of a kind that ask for the same resources, split where it would
        exceed the cluster's limit.
        """
        found = []
        for kind in KINDS:
            parts = self._parts([stage for stage in stages if stage.kind == kind], largest)
            for part, own in enumerate(parts, 1):
                suffix = f"-{part}" if len(parts) > 1 else ""
                found.append(
                    Array(
                        token=f"{self.plan.experiment}.{number}.{kind}{suffix}",
                        kind=kind,
                        stages=[stage.name for stage in own],
                        keys=[stage.key for stage in own],
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

    def _write_files(self, array: Array, code: Path) -> None:
        """Write the script of an array and the file that lists its stages."""
        atomic.write_json(
            self._tasks_path(array),
            {
                "format": FORMAT,
                "folder": str(self.folder),
                "wandb": self.options.wandb,
                "stages": [asdict(self._stages[name]) for name in array.stages],
            },
        )
        atomic.write_text(self._script_path(array), self._script(array, code))

    def _script_path(self, array: Array) -> Path:
        return self.folder / "slurm" / f"{array.token}.sbatch"

    def _tasks_path(self, array: Array) -> Path:
        return self.folder / "slurm" / f"{array.token}.json"

    def _script(self, array: Array, code: Path) -> str:
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

    def _connect(
        self, arrays: Sequence[Array], live: Mapping[str, tuple[Task, Job]], outcome: Outcome
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
        under_way = {task.id for task, job in live.values() if job is not _NEW and not job.held}
        going = {task.id for task in waiting.values()} - under_way
        self._cancel_strangers(live, going)
        for array in unreleased:
            conditions: dict[str, list[int]] = defaultdict(list)
            for task in array.tasks:
                if task.id in going:
                    conditions[self._condition(task, waiting, arrays)].append(task.index)
            for condition, indices in conditions.items():
                self.slurm.depend(array.number or 0, indices, condition)
        held = [a for a in unreleased if any(task.id in going for task in a.tasks)]
        self.slurm.release([array.number or 0 for array in held])
        for array in unreleased:
            array.released = True
        self.jobs.write(arrays)

    def _cancel_strangers(self, live: Mapping[str, tuple[Task, Job]], going: set[str]) -> None:
        """Cancel held tasks of stages that left the plan, before their array is released."""
        left = [task.id for task, job in live.values() if job.held and task.id not in going]
        if left:
            self.slurm.cancel(left)

    def _condition(self, task: Task, waiting: Mapping[str, Task], arrays: Sequence[Array]) -> str:
        """The dependency of a task as SLURM writes it; "" for none."""
        if task.stage == REPORT.name:
            numbers = sorted({t.number for t in waiting.values() if t.stage != REPORT.name})
            return "afterany:" + ":".join(map(str, numbers)) if numbers else ""
        stage = self._stages[task.stage]
        if sweetspot_ready(self.plan, stage, site.home()):
            return self.options.dependency or ""
        alone = {array.number for array in arrays if len(array.stages) == 1}
        above = [
            str(parent.number) if parent.number in alone else parent.id
            for name in self._above(stage)
            if (parent := waiting.get(name)) is not None
        ]
        return "afterok:" + ":".join(above) if above else self.options.dependency or ""

    def _above(self, stage: Stage) -> list[str]:
        """The parents of a stage that have jobs; for a parent without work, its own parents."""
        found = []
        for name in stage.parents:
            parent = self._stages[name]
            found += [name] if parent.has_work else self._above(parent)
        return list(dict.fromkeys(found))


_LASTING = ("dependency", "wandb", "max_submit")
"""The options that hold for all portions."""
_NEW = Job(id="0_0", state="PENDING")
"""SLURM's view of a task that was just submitted."""
