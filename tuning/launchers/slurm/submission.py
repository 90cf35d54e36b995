"""Submits the stages of a plan that are neither done nor queued, each once, whatever fails.

Stages of one kind that ask for the same resources are one job array, submitted held; then each task
gets its dependency (afterok on the task of its parent, none if that is done); then all arrays are
released. Every array is recorded in jobs.json before it is submitted: the next submission finishes
an interrupted one, and recognises its arrays by their tokens. What SLURM refuses is taken back. Of
more stages than the cluster takes at once, the first are submitted (portions.py).

A queued task that only waits is replaced if its stage now asks for other resources. A stage whose
run is a live job of another experiment gets no job; what needs it depends on that one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.flags import restore
from tuning.launchers.slurm import feasible, portions, snapshot
from tuning.launchers.slurm.arrays import Arrays
from tuning.launchers.slurm.client import WAITS, Job, Refused, TooMany
from tuning.launchers.slurm.connecting import Connection
from tuning.launchers.slurm.dependencies import Dependencies
from tuning.launchers.slurm.ending import await_end
from tuning.launchers.slurm.ledger import REPORT, Array, Jobs, Task
from tuning.launchers.slurm.outcome import NEW, Asked, Door, Live, Options, Outcome
from tuning.launchers.slurm.resources import Resources
from tuning.launchers.slurm.shared import Elsewhere, elsewhere
from tuning.plan import Plan, Stage, save_plan, standing, sweetspot_ready
from tuning.runs import atomic
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.lock import Lock


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
        self.home = site.home()
        self.folder = site.reports_dir() / plan.experiment
        self.jobs = Jobs(self.folder)
        self._stages = {stage.name: stage for stage in (*plan.stages, REPORT)}
        self._asked = {
            name: cluster.of(stage) for name, stage in self._stages.items() if stage.has_work
        }
        self._files = Arrays(self.folder, self._stages, self._asked, wandb=self.options.wandb)
        self._dependencies = Dependencies(plan, self.options.dependency)
        self._connection = Connection(slurm, self.folder, self._dependencies)
        self._elsewhere: dict[str, Elsewhere] = {}
        self._recorded: dict[str, Array] = {}
        """Every array that was submitted before, by its token."""

    def run(self) -> Outcome:
        """Submit what is neither done nor queued."""
        with Lock(self.folder).holding():
            return self.submit()

    def submit(self) -> Outcome:
        """The same, for who holds the lock of the folder."""
        arrays = self._found()
        self._recorded = {array.token: array for array in arrays}
        ending = await_end(self.slurm, self.plan, self.folder, arrays)
        self._elsewhere = elsewhere(self.plan.stages, self.folder, self.slurm.queue)
        live, outcome = self._settled(arrays)
        outcome.ending = ending
        self._follow_replaced(arrays, live, outcome)
        missing = self._portion(self._to_submit(outcome), live, outcome)
        broken = any(not array.released for array in arrays)
        waits = broken or outcome.shared or REPORT.name in outcome.replaced
        before = atomic.read_object(self.folder / "plan.json")
        try:
            if missing or (waits and not _report_waits(live)):
                arrays = self._add(arrays, missing, live, outcome)
            elif outcome.left:
                save_plan(self.folder, self.plan)
            self._connection.connect(arrays, live, outcome, self._elsewhere)
        except (Refused, TooMany) as refusal:
            said = self._put_back(before, live, outcome) if before else ""
            raise type(refusal)(" ".join(filter(None, (str(refusal), said)))) from None
        outcome.goes_on, outcome.follows = REPORT.name in live, _report_waits(live)
        options = {name: getattr(self.options, name) for name in _LASTING}
        portions.write_rest(self.folder, outcome.left, self._asked, options)
        return outcome

    def _add(
        self, arrays: list[Array], missing: list[Stage], live: Live, outcome: Outcome
    ) -> list[Array]:
        """All arrays, when stages were submitted, and a report after them in place of the one that
        waits.
        """
        self._require_possible(missing)
        save_plan(self.folder, self.plan)
        report = self._waiting_report(live)
        if report is not None:
            self.slurm.cancel([report.id])
            outcome.cancelled[REPORT.name] = live.pop(REPORT.name)[0]
        least = 1 if report is None else 0
        arrays, missing = self._submit_what_fits(arrays, missing, outcome, least)
        self._submitted(arrays, missing, live, outcome)
        return arrays

    def _submitted(
        self, arrays: Sequence[Array], stages: Sequence[Stage], live: Live, outcome: Outcome
    ) -> None:
        """Note the tasks of stages, and of the report, that were just submitted."""
        latest = {task.stage: task for array in arrays for task in array.tasks}
        outcome.new = {stage.name: latest[stage.name] for stage in stages}
        live[REPORT.name] = (latest[REPORT.name], NEW)

    def _put_back(self, plan: Any, live: Live, outcome: Outcome) -> str:
        """Submit again, as it was asked for, what waited and was cancelled for what SLURM refuses;
        what to say of it. Not what was held since its submission was interrupted.
        """
        arrays = self.jobs.arrays()
        kept = {array.token for array in arrays}
        outcome.queued = {n: task for n, task in outcome.queued.items() if task.token in kept}
        going = outcome.queued.keys() | outcome.ended.keys() | outcome.shared.keys()
        arrays_of = {n: self._recorded[task.token] for n, task in outcome.cancelled.items()}
        released = {n: a for n, a in arrays_of.items() if a.released and n not in going}
        asked = {name: array.resources for name, array in released.items() if array.resources}
        if not asked and REPORT.name not in released:
            return ""
        self._asked |= {name: restore(Resources, each) for name, each in asked.items()}
        names = portions.unblocked(self.plan.stages, asked, going)
        stages = [stage for stage in self.plan.stages if stage.name in names]
        save_plan(self.folder, Plan.from_json(plan))
        try:
            arrays = self._submit(arrays, stages)
            self._submitted(arrays, stages, live, outcome)
            self._connection.connect(arrays, live, outcome, self._elsewhere)
        except (Refused, TooMany) as refusal:
            return f"What waited was cancelled, and cannot be queued again: {refusal}"
        return "What waited is queued again, as it was."

    def look(self) -> dict[str, Elsewhere]:
        """Look up, for a dry run, which stages other experiments have queued; none where SLURM does
        not answer.
        """
        with contextlib.suppress(StageFailed, UserError):
            self._elsewhere = elsewhere(self.plan.stages, self.folder, self.slurm.queue)
        return self._sorted({}).shared

    def preview(self, max_array_size: int) -> list[tuple[Array, str]]:
        """The arrays that would be submitted if nothing of this experiment were queued, and their
        scripts.
        """
        outcome = self._sorted({})
        missing = self._to_submit(outcome)
        if not missing and not outcome.shared:
            return []
        arrays = self._files.of([*missing, REPORT], max_array_size, number="1")
        return [(array, self._files.script(array, Path("SNAPSHOT"))) for array in arrays]

    def words(self, name: str) -> str:
        """The dependency of a stage, for a dry run."""
        return self._dependencies.words(name, self._sorted({}).ended, self._elsewhere)

    def _found(self) -> list[Array]:
        """The arrays of jobs.json; one whose job id is unknown is looked up by its token."""
        arrays = self.jobs.arrays()
        if all(array.number is not None for array in arrays):
            return arrays
        numbers = {job.token: job.number for job in self._queue() if job.live}
        for array in arrays:
            array.number = array.number or numbers.get(array.token)
        kept = [array for array in arrays if array.number is not None]
        self.jobs.write(kept)
        return kept

    def _queue(self) -> list[Job]:
        """What SLURM knows of the tasks of everybody who submitted this experiment."""
        return self.slurm.queue(self.jobs.users())

    def _settled(self, arrays: Sequence[Array]) -> tuple[Live, Outcome]:
        """What is live, and what follows from it, when all that has to go has been cancelled.

        A task may start before it is cancelled; then it stays, and everything is sorted again.
        """
        cancelled: dict[str, Task] = {}
        for _ in range(TRIES):
            live = self._live(arrays)
            outcome = self._sorted(live)
            outcome.cancelled = {n: t for n, t in cancelled.items() if n not in outcome.queued}
            outcome.replaced = {n: t for n, t in outcome.cancelled.items() if self._differs(n, t)}
            dropped = [task.id for task in outcome.dropped.values()]
            if not dropped:
                return live, outcome
            self._require_possible(self._to_submit(outcome), replaces=True)
            self.slurm.cancel(dropped, waiting=True)
            cancelled |= outcome.dropped
        raise StageFailed(f"SLURM did not cancel {', '.join(dropped)}; submit again.")

    def _live(self, arrays: Sequence[Array]) -> Live:
        """What is pending or running; what SLURM holds since its start failed is released."""
        if not arrays:
            return {}
        tokens = {array.token for array in arrays}
        seen = {job.id: job for job in self._queue() if job.token in tokens}
        self._require_ours(arrays, seen)
        doomed = [job.id for job in seen.values() if job.doomed]
        if doomed:
            self.slurm.cancel(doomed)
        stuck = [job for job in seen.values() if job.held_by_slurm and self._is_ours(job.token)]
        self.slurm.release([job.id for job in stuck])
        found = {}
        for array in arrays:
            for task in array.tasks:
                job = seen.get(task.id)
                if job is not None and job.live:
                    found[task.stage] = (task, job)
        return found

    def _require_ours(self, arrays: Sequence[Array], seen: Mapping[str, Job]) -> None:
        """Raise UserError if another user's submission of the experiment was interrupted: only that
        user can complete it.
        """
        for array in arrays:
            held = [job for task in array.tasks if (job := seen.get(task.id)) and job.held]
            if held and not array.released and not self._is_ours(array.token):
                user = held[0].user
                raise UserError(
                    f"the submission of '{self.plan.experiment}' by {user} was interrupted; {user} "
                    f"must submit it again, or cancel job {array.number}."
                )

    def _sorted(self, live: Live) -> Outcome:
        """What is queued and what has ended; a waiting task that depends on a job that is gone, or
        asks for other resources than its stage, is neither, and is to be dropped.
        """
        outcome = Outcome()
        for stage in self.plan.stages:
            if stage.name in live:
                task, job = live[stage.name]
                self._require_same(stage, task)
                differs = self._differs(stage.name, task)
                can_start = self._can_start(stage, job, outcome)
                stays = job.state not in WAITS or not self._is_ours(task.token)
                if stays or (can_start and not differs):
                    outcome.queued[stage.name] = task
                    outcome.outdated |= {stage.name: task} if differs else {}
                    continue
                outcome.dropped[stage.name] = task
            found = standing(self.plan, stage, self.home)
            if found.state in ("done", "skipped") or not stage.has_work:
                outcome.ended[stage.name] = (found.state, found.reason)
            elif (other := self._elsewhere.get(stage.name)) is not None and other.same:
                outcome.shared[stage.name] = other
        if (report := self._waiting_report(live)) is not None:
            outcome.dropped |= {REPORT.name: report} if self._differs(REPORT.name, report) else {}
        return outcome

    def _differs(self, name: str, task: Task) -> bool:
        """Whether a task asks for other resources than its stage does now."""
        recorded = self._recorded[task.token].asked
        return bool(recorded) and recorded != self._asked[name].digest

    def _is_ours(self, token: str) -> bool:
        """Whether this user submitted an array, and so may change its jobs."""
        return self._recorded[token].user in (None, os.getuid())

    def _require_same(self, stage: Stage, task: Task) -> None:
        if task.key != stage.key:
            raise UserError(
                f"'{stage.name}' is queued with other settings as job {task.id}; wait for it, or "
                f"cancel it: tuning cancel {self.plan.experiment}"
            )

    def _can_start(self, stage: Stage, job: Job, outcome: Outcome) -> bool:
        """Whether all dependencies of a stage are done or queued, or its job was let go since its
        checkpoint exists.
        """
        known = outcome.queued.keys() | outcome.ended.keys() | outcome.shared.keys()
        let_go = job.reason != "Dependency" and sweetspot_ready(self.plan, stage, self.home)
        return let_go or set(self._dependencies.above(stage)) <= known

    def _to_submit(self, outcome: Outcome) -> list[Stage]:
        cared_for = outcome.queued.keys() | outcome.ended.keys() | outcome.shared.keys()
        return [stage for stage in self.plan.stages if stage.name not in cared_for]

    def _follow_replaced(self, arrays: Sequence[Array], live: Live, outcome: Outcome) -> None:
        """Let queued tasks wait for the present job of a run of another experiment, which may have
        replaced the one that they were submitted after.
        """
        others = {n: o for n, o in self._elsewhere.items() if n not in outcome.ended}
        report = {REPORT.name: live[REPORT.name][0]} if REPORT.name in live else {}
        for name, task in (outcome.queued | report).items():
            is_report = name == REPORT.name
            above = outcome.shared if is_report else self._dependencies.above(self._stages[name])
            waits = live[name][1].reason == "Dependency" and self._is_ours(task.token)
            if waits and not outcome.shared.keys().isdisjoint(above):
                found = self._dependencies.conditions([task], outcome.queued, arrays, others)
                with contextlib.suppress(StageFailed):  # it has just started, or was cancelled
                    self.slurm.depend(task.number, [task.index], *found)

    def _require_possible(self, stages: Sequence[Stage], *, replaces: bool = False) -> None:
        """Raise Refused if the cluster could never run one of these stages, or the report; where
        they replace jobs, also if a policy is against them, which sbatch would say too late.
        """
        kinds: dict[Resources, list[Array]] = defaultdict(list)
        for array in self._files.of([*stages, REPORT], largest=sys.maxsize, number="1"):
            kinds[self._asked[array.stages[0]]].append(array)
        for resources, arrays in kinds.items():
            named = ", ".join(dict.fromkeys(array.kind for array in arrays))
            script = self._files.script(arrays[0], Path("SNAPSHOT"))
            feasible.require_possible(self.slurm, named, resources, script, policy=replaces)

    def _portion(self, missing: list[Stage], live: Live, outcome: Outcome) -> list[Stage]:
        """The first of the missing stages that may be submitted now; the others are left."""
        if self.options.only is not None:
            going = outcome.queued.keys() | outcome.ended.keys() | outcome.shared.keys()
            chosen = portions.unblocked(self.plan.stages, self.options.only, going)
            missing = [stage for stage in missing if stage.name in chosen]
        if self.options.max_submit is None:
            return missing
        dropped = self._waiting_report(live) is not None
        taken = self.slurm.count() - dropped
        room = max(0, self.options.max_submit - taken - 1)
        outcome.left = missing[room:]
        return missing[:room]

    def _submit_what_fits(
        self, arrays: list[Array], missing: list[Stage], outcome: Outcome, least: int
    ) -> tuple[list[Array], list[Stage]]:
        """All arrays, and the stages that were submitted: as many as SLURM takes, by halves, and at
        least so many.
        """
        while True:
            try:
                return self._submit(arrays, missing), missing
            except TooMany:
                if len(missing) <= least:
                    raise
                half = len(missing) // 2
                outcome.left = [*missing[half:], *outcome.left]
                missing = missing[:half]

    def _waiting_report(self, live: Live) -> Task | None:
        """The report of this user that waits, and does not wait for new stages."""
        task, job = live.get(REPORT.name, (None, NEW))
        waits = task is not None and job.state in WAITS and self._is_ours(task.token)
        return task if waits else None

    def _submit(self, arrays: list[Array], missing: Sequence[Stage]) -> list[Array]:
        """Submit arrays, held; each is recorded before and after its sbatch."""
        code = snapshot.take()
        before = (int(array.token.split(".")[-2].partition("-")[0]) for array in arrays)
        number = f"{1 + max(before, default=0)}-{secrets.token_hex(3)}"
        new = self._files.of([*missing, REPORT], self.slurm.max_array_size(), number)
        for array in new:
            array.code, array.time = str(code), time.time()
            self._files.write(array, code)
        everything = [*arrays, *new]
        self.jobs.write(everything)
        try:
            for array in new:
                array.number = self.slurm.submit(self._files.script_path(array))
                self.jobs.write(everything)
        except UserError:
            self.slurm.cancel([str(array.number) for array in new if array.number is not None])
            self.jobs.write(arrays)
            raise
        return everything


def _report_waits(live: Live) -> bool:
    """Whether a report waits, whoever submitted it; one that runs may be what submits now."""
    return REPORT.name in live and live[REPORT.name][1].state in WAITS


_LASTING = ("dependency", "wandb", "max_submit")
"""The options that hold for all portions."""
TRIES = 5
"""How often what has to go is cancelled before SLURM is taken not to do it."""
