"""A SLURM in memory, with a clock of its own, and stages that run on it in no time.

`FakeCluster` answers what a submission asks of SLURM, with the semantics that SLURM 22.05 was seen
to have:

- a task is held until its array is released; what it waits for is tested all the same
- a dependency on a job that SLURM no longer knows counts as met
- a dependency that can never be met is noticed at a scheduling step and ends the task at the next
- a change of several tasks is made where it can be and fails as a whole where one has ended
- a task has a record of its own once it has started or, in an array of several, what it waits for
  was changed; cancelled alone before that it is forgotten, so that what waits for it starts. In an
  array of one task, what waits for the array by its number is ended as it should be
- ended tasks are remembered for a while

Squeue sorts by partition and state, which says nothing of the order of submission: `queue()` has
no order. `FakeStages` is what the tasks run: files as standing() reads them, without training.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuning.launchers.slurm.client import HELD_BY_SLURM, Job, Node, Refused
from tuning.launchers.slurm.job import Forks
from tuning.launchers.slurm.ledger import REPORT
from tuning.plan import Plan, Stage, standing, sweetspot_ready
from tuning.runs import manifest
from tuning.runs.errors import StageFailed
from tuning.runs.identity import FORMAT
from tuning.sweetspots.store import METADATA, checkpoint_name

LIVE = ("PENDING", "RUNNING", "COMPLETING")


class Broken(Exception):
    """A submission that breaks half way: what called SLURM is no more."""


@dataclass
class FakeTask:
    """A task of an array."""

    number: int
    index: int
    token: str
    stage: Stage
    throttle: int
    state: str = "PENDING"
    held: bool = True
    apart: bool = False
    """Whether it has a record of its own; the others share that of their array."""
    alone: bool = False
    """Whether it is the only one of its array."""
    lost: bool = False
    """Whether only the number of its array is left of it."""
    processes: int = 1
    """Processes a node, as its script asks for."""
    mem: str = ""
    """Memory, as its script asks for."""
    stuck: bool = False
    """Whether SLURM holds it since it could not be started."""
    conditions: list[tuple[str, int, int | None]] = field(default_factory=list)
    doomed: bool = False
    begins: int = 0
    ended: int = 0
    becomes: str = ""
    """The state that follows COMPLETING."""

    @property
    def id(self) -> str:
        """As SLURM writes it."""
        return f"{self.number}_{self.index}"

    @property
    def live(self) -> bool:
        """Whether it waits, runs or is on its way out."""
        return self.state in LIVE

    @property
    def reason(self) -> str:
        """What squeue says of it."""
        if self.state != "PENDING":
            return "None"
        if self.held:
            return "JobHeldUser"
        if self.stuck:
            return HELD_BY_SLURM[0]
        if self.doomed:
            return "DependencyNeverSatisfied"
        return "Dependency" if self.conditions else "BeginTime" if self.begins else "Priority"


class FakeCluster:
    """A `Door`; `step()` lets a moment pass."""

    def __init__(
        self, stages: FakeStages, rng: random.Random, *, slots: int = 3, largest: int = 1001,
        period: int = 1, memory: int = 20, busy: float = 0.0,
    ) -> None:  # fmt: skip
        self.stages = stages
        self.rng = rng
        self.slots = slots
        self.largest = largest
        self.period = period
        """Moments between two scheduling steps."""
        self.memory = memory
        """Moments for which ended tasks are remembered."""
        self.busy = busy
        """The chance that a moment passes while a command is answered."""
        self.now = 0
        self.tasks: list[FakeTask] = []
        self.calls: list[str] = []
        self.history: list[str] = []
        self.submitted: list[str] = []
        """The stages of every array, in order of submission."""
        self.breaks: tuple[int, str, str] | None = None
        """At the how manieth call from now the caller breaks, of which command ("" for any), and
        whether before, half way through, or after it.
        """
        self.refusals: list[int] = []
        """The calls of submit, counted from here, that are refused."""
        self.impossible = ""
        """The memory that no node has."""
        self.forbidden = ""
        """The memory that a policy is against."""
        self.unchangeable = ""
        """The same, where only a change of the job says so."""
        self._next = 1

    # -- what a submission asks

    def refusal(self, script: str, *, policy: bool = False) -> str:
        """Why a script could never run: the `impossible` that it asks for, or the `forbidden`."""
        self._call("refusal", lambda: None)
        asks = read_script(script)[0].get("--mem", "")
        if policy and asks and asks == self.forbidden:
            return "Job violates accounting/QOS policy (job submit limit, user's size)"
        impossible = asks and asks == self.impossible
        return "Requested node configuration is not available" if impossible else ""

    def nodes(self) -> list[Node]:
        """One node of one core."""
        return [Node(partition="low", default=True, cpus=1, mem=4000, gres="(null)", up=True)]

    def submit(self, script: Path) -> int:
        """Take a script into the queue."""
        if self.refusals:
            self.refusals = [count - 1 for count in self.refusals if count > 0]
            if 0 in self.refusals:
                self.calls.append("submit")
                self._note("submit refused")
                raise Refused("SLURM refuses it: no such partition.")
        return int(self._call("submit", lambda: self._submit(script)))

    def depend(self, number: int, indices: Sequence[int], condition: str) -> None:
        """Make tasks wait for something else."""
        half = list(indices)[: len(indices) // 2]
        self._call(
            "depend", lambda: self.change(number, indices, condition),
            lambda: self.change(number, half, condition),
        )  # fmt: skip

    def release(self, jobs: Iterable[int | str]) -> None:
        """Let held arrays or tasks go."""
        listed = [str(job) for job in jobs]
        if not listed:
            return
        self._call(
            "release", lambda: self._release(listed),
            lambda: self._release(listed[: len(listed) // 2]),
        )  # fmt: skip

    def cancel(self, jobs: Sequence[str], *, waiting: bool = False) -> None:
        """Cancel tasks or arrays; what has ended is no error."""
        listed = list(jobs)
        self._call(
            "cancel", lambda: self.end_by_force(listed, waiting=waiting),
            lambda: self.end_by_force(listed[: len(listed) // 2], waiting=waiting),
        )  # fmt: skip

    def queue(self, users: Iterable[int] = ()) -> list[Job]:
        """Every task that is remembered, in no order."""
        return list(self._call("queue", self._queue))

    def count(self) -> int:
        """How many tasks wait, run or are on their way out."""
        return int(self._call("count", lambda: sum(task.live for task in self.tasks)))

    def pause(self, seconds: float) -> None:
        """A moment passes."""
        self.step()

    def max_array_size(self) -> int:
        """How many tasks an array may have."""
        return int(self._call("max_array_size", lambda: self.largest))

    def ended(self, jobs: Sequence[str]) -> dict[str, str]:
        """There is no accounting database."""
        return {}

    # -- what they do

    def _call(
        self, name: str, act: Callable[[], Any], half: Callable[[], Any] = lambda: None
    ) -> Any:
        """Answer a call, unless the caller breaks at it."""
        self.calls.append(name)
        if self.rng.random() < self.busy:
            self.step()
        if self.breaks is None or self.breaks[1] not in ("", name):
            return act()
        count, which, when = self.breaks
        self.breaks = (count - 1, which, when) if count > 1 else None
        if count > 1:
            return act()
        self._note(f"{name}: breaks, {when}")
        if when == "half":
            half()
        elif when == "after":
            act()
        raise Broken(name)

    def _submit(self, script: Path) -> int:
        text = script.read_text(encoding="utf-8")
        options, tasks = read_script(text)
        processes = int(re.search(r"^export TUNING_PROCESSES=(\d+)$", text, re.MULTILINE)[1])
        assert "--hold" in options, (
            "an array that is not held may start before it knows its parents"
        )
        assert options["--kill-on-invalid-dep"] == "yes"
        first, last, throttle = re.fullmatch(r"(\d+)-(\d+)(?:%(\d+))?", options["--array"]).groups()
        found = json.loads(tasks.read_text(encoding="utf-8"))
        stages = [Stage(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
                  for entry in found["stages"]]  # fmt: skip
        assert (int(first), int(last)) == (0, len(stages) - 1)
        if len(stages) > self.largest:
            raise Refused("SLURM refuses it: Invalid job array specification.")
        token = options["--comment"].removeprefix("tuning:")
        number, self._next = self._next, self._next + 1 + len(stages)
        self._note(f"submit {number} {token}: {', '.join(s.name for s in stages)}")
        for index, stage in enumerate(stages):
            self._require_once(stage)
            self.tasks.append(
                FakeTask(
                    number,
                    index,
                    token,
                    stage,
                    throttle=int(throttle or len(stages)),
                    alone=len(stages) == 1,
                    processes=processes,
                    mem=options.get("--mem", ""),
                )
            )
        self.submitted += [stage.name for stage in stages]
        return number

    def _require_once(self, stage: Stage) -> None:
        """Fail where a stage is in the queue already; a report that runs may stay, and so may what
        will never start.
        """
        named = [t for t in self.tasks if t.stage.name == stage.name]
        there = [t.id for t in named if t.live and not t.doomed]
        assert stage.name == REPORT.name or not there, f"{stage.name} is in the queue as {there}"

    def change(self, number: int, indices: Iterable[int], condition: str) -> None:
        """Set what tasks wait for; StageFailed where one of them no longer waits."""
        self._note(f"depend {number}_{list(indices)} {condition or 'nothing'}")
        conditions = [
            (kind, int(job.partition("_")[0]), int(job.partition("_")[2]) if "_" in job else None)
            for kind, _, jobs in (part.partition(":") for part in condition.split(",") if part)
            for job in jobs.split(":")
        ]
        assert all(kind in ("afterok", "afterany") for kind, *_ in conditions), condition
        refused = []
        for index in indices:
            task = self._task(number, index)
            if task is None or task.state != "PENDING":
                refused.append(f"{number}_{index}: Job is no longer pending execution")
                continue
            if task.mem and task.mem == self.unchangeable:
                raise Refused("scontrol update: Requested partition configuration not available.")
            task.apart, task.doomed, task.conditions = not task.alone, False, list(conditions)
        if refused:
            raise StageFailed(f"scontrol update: {'; '.join(refused)}.")

    def _release(self, jobs: Iterable[str]) -> None:
        """What has ended cannot be released, which is no error."""
        for job in jobs:
            self._note(f"release {job}")
            for task in self.tasks:
                if job in (task.id, str(task.number)):
                    task.held = task.stuck = False

    def end_by_force(self, jobs: Iterable[str], *, waiting: bool = False) -> None:
        """Cancel, as anybody may; or only what waits."""
        for job in jobs:
            self._note(f"cancel {job}")
            for task in [t for t in self.tasks if job in (t.id, str(t.number)) and t.live]:
                if waiting and task.state != "PENDING":
                    continue
                task.apart = task.apart or job == str(task.number)
                self._cancel(task)

    def _cancel(self, task: FakeTask) -> None:
        if task.state == "RUNNING":
            self.stages.cancelled(task.stage)
            self._leave(task, "CANCELLED")
        elif task.state == "COMPLETING":
            task.becomes = "CANCELLED" if task.becomes == "PENDING" else task.becomes
        elif task.apart or task.alone:
            task.lost = not task.apart
            self._end(task, "CANCELLED")
        else:
            self.tasks.remove(task)

    def _queue(self) -> list[Job]:
        found = [Job(id=t.id, state=t.state, reason=t.reason, token=t.token)
                 for t in self.tasks if not t.lost]  # fmt: skip
        self.rng.shuffle(found)
        return found

    # -- time

    def step(self) -> None:
        """Let a moment pass."""
        self.now += 1
        for task in [t for t in self.tasks if t.state == "COMPLETING"]:
            self._settle(task)
        for task in [t for t in self.tasks if t.state == "RUNNING"]:
            self._work(task)
        if self.now % self.period == 0:
            self._schedule()
        self.tasks = [t for t in self.tasks if t.live or self.now - t.ended < self.memory]

    def run_down(self, most: int = 3000) -> None:
        """Let time pass until nothing runs or will ever run."""
        quiet = 0
        for _ in range(most):
            before = [(t.id, t.state) for t in self.tasks if t.live]
            if not before:
                return
            self.step()
            running = any(t.state != "PENDING" or t.begins for t in self.tasks if t.live)
            same = before == [(t.id, t.state) for t in self.tasks if t.live]
            quiet = quiet + 1 if same and not running else 0
            if quiet > 3 * self.period + 3:
                return
        raise AssertionError("the cluster does not come to rest")

    def _work(self, task: FakeTask) -> None:
        """One moment of a stage, and what its end means for its job."""
        end = self.stages.work(task.stage, self)
        if end is not None:
            self._note(f"{task.id} {task.stage.name}: {end}")
            self._leave(task, {"done": "COMPLETED", "again": "PENDING"}.get(end, "FAILED"))

    def _leave(self, task: FakeTask, becomes: str) -> None:
        """A job that ends is on its way out for a moment, or is gone at once."""
        task.state, task.becomes = "COMPLETING", becomes
        if self.rng.random() < 0.5:
            self._settle(task)

    def _settle(self, task: FakeTask) -> None:
        if task.becomes == "PENDING":
            task.state, task.begins = "PENDING", self.now + self.rng.randint(1, 4)
        else:
            self._end(task, task.becomes)

    def _end(self, task: FakeTask, state: str) -> None:
        task.state, task.ended = state, self.now

    def _schedule(self) -> None:
        """End what can never start, and start what can."""
        for task in [t for t in self.tasks if t.state == "PENDING"]:
            if task.doomed:
                self._note(f"{task.id} {task.stage.name}: dependency never satisfied")
                self._end(task, "CANCELLED")
                continue
            task.conditions = [c for c in task.conditions if self._met(c) is not True]
            task.doomed = any(self._met(condition) is False for condition in task.conditions)
            free = not task.held and not task.stuck
            if not task.conditions and free and self._has_place(task):
                self._start(task)

    def _met(self, condition: tuple[str, int, int | None]) -> bool | None:
        """Whether what is waited for has come; False where it never can."""
        kind, number, index = condition
        above = [
            t for t in self.tasks
            if t.number == number and (index is None or (index == t.index and not t.lost))
        ]  # fmt: skip
        if kind == "afterok" and any(t.state not in (*LIVE, "COMPLETED") for t in above):
            return False
        return None if any(t.live for t in above) else True

    def _has_place(self, task: FakeTask) -> bool:
        running = [t for t in self.tasks if t.state in ("RUNNING", "COMPLETING")]
        own = sum(t.number == task.number for t in running)
        return task.begins <= self.now and len(running) < self.slots and own < task.throttle

    def _start(self, task: FakeTask) -> None:
        self._note(f"{task.id} {task.stage.name}: starts")
        task.state, task.apart, task.begins = "RUNNING", True, 0
        if task.stage.name == REPORT.name:
            experiment = task.token.split(".")[0]
            own = [t for t in self.tasks if t.token.startswith(f"{experiment}.")]
            early = [t.id for t in own if t.live and t.stage.name != REPORT.name]
            assert not early, f"the report starts before {early} have ended"
        self.stages.start(task.stage)

    # -- looking

    @property
    def live(self) -> dict[str, FakeTask]:
        """{stage: its task that waits, runs or is on its way out}."""
        return {task.stage.name: task for task in self.tasks if task.live}

    def _task(self, number: int, index: int) -> FakeTask | None:
        return next((t for t in self.tasks if (t.number, t.index) == (number, index)), None)

    def _note(self, text: str) -> None:
        self.history.append(f"{self.now:4d}  {text}")


def read_script(text: str) -> tuple[dict[str, str], Path]:
    """The options of a script and the file that its last line names."""
    options = {}
    for line in text.splitlines()[1:]:
        if not line.startswith("#"):
            break
        name, _, value = line.removeprefix("#SBATCH ").partition("=")
        options[name] = value
    words = shlex.split(text.rstrip().splitlines()[-1])
    return options, Path(words[words.index("--tasks") + 1])


@dataclass(frozen=True)
class Spot:
    """A sweetspot of an SFT run: when it is reached, if ever, and what it costs."""

    at: int | None
    used: int


class BadInput(AssertionError):
    """A stage was started before what it needs was there."""


class FakeStages:
    """What stages do: they work for some moments, write run directories, and may fail.

    `events` are the ends of the next starts of a stage: failed, killed (without a word), again
    (stopped, and put back into the queue), late (killed when all was written). When there are no
    more, it ends well, unless it is `faulty`.
    """

    def __init__(self, plan: Plan, home: Path, rng: random.Random) -> None:
        self.plan = plan
        self.home = home
        self.rng = rng
        self.folder = home / "outputs" / "reports" / plan.experiment
        self.events: dict[str, list[str]] = {}
        self.faulty: set[str] = set()
        self.moments: dict[str, int] = {}
        self.spots: dict[tuple[str, str], Spot] = {}
        self.lifts = True
        """Whether the cluster lets a job change what others wait for."""
        self.done: set[str] = set()
        self.last: dict[str, str] = {}
        """How the last start of a stage ended, or `running`."""
        self._at: dict[str, int] = {}
        self._course: dict[str, tuple[str, int]] = {}
        self._forks: dict[str, Forks] = {}

    def start(self, stage: Stage) -> None:
        """Begin, or go on; BadInput where what it stands on is not there."""
        name = stage.name
        if name == REPORT.name:
            self._course[name] = ("done", 1)
            return
        self._require_input(stage)
        self._forks.pop(name, None)
        self._course[name] = self._next_course(stage)
        self.last[name] = "running"
        self._record(stage, "running")

    def _next_course(self, stage: Stage) -> tuple[str, int]:
        """How the start that now begins will end, and after how many moments."""
        if standing(self.plan, stage, self.home).state == "skipped":
            return "done", 1
        left = max(1, self.moments.get(stage.name, 2) - self._at.get(stage.name, 0))
        events = self.events.get(stage.name, [])
        event = "failed" if stage.name in self.faulty else events.pop(0) if events else "done"
        return event, left if event in ("done", "late") else self.rng.randint(1, left)

    def _require_input(self, stage: Stage) -> None:
        if sweetspot_ready(self.plan, stage, self.home):
            return
        for name in stage.parents:
            above = self.plan.stage(name)
            if not above.has_work:
                self._require_input(above)
            elif standing(self.plan, above, self.home).state not in ("done", "skipped"):
                raise BadInput(f"{stage.name} runs and {name} is not done")

    def work(self, stage: Stage, cluster: FakeCluster) -> str | None:
        """One moment; how it ended, or None."""
        event, left = self._course[stage.name]
        self._course[stage.name] = (event, left - 1)
        if stage.name == REPORT.name:
            return event
        self._at[stage.name] = self._at.get(stage.name, 0) + 1
        self._reach_spots(stage, cluster)
        if left > 1:
            return None
        return self._end(stage, event)

    def _end(self, stage: Stage, event: str) -> str:
        self.last[stage.name] = event
        if event in ("done", "late"):
            self._finish(stage)
        if event in ("done", "again"):
            self._record(stage, "done" if event == "done" else "pending")
        elif event == "failed":
            if len(stage.phases) > 1 and not any(run == stage.name for run, _ in self.spots):
                self._write_runs(stage, stage.phases[:1])
            self._record(stage, "failed", "it was not to be")
        return event

    def cancelled(self, stage: Stage) -> None:
        """It is stopped while it runs."""
        self.last[stage.name] = "cancelled"
        self._record(stage, "pending", "received SIGTERM")

    def _reach_spots(self, stage: Stage, cluster: FakeCluster) -> None:
        """Write the sweetspots that are reached, and let forks go as a job does."""
        reached = [
            (label, spot) for (run, label), spot in self.spots.items()
            if run == stage.name and spot.at is not None and spot.at <= self._at[stage.name]
        ]  # fmt: skip
        for label, spot in reached:
            folder = self.home / "models" / stage.name / checkpoint_name(label)
            if not folder.exists():
                folder.mkdir(parents=True)
                _write(folder / METADATA, {"sft_data_used": spot.used})
                _write(folder / manifest.MANIFEST, {"files": {}})
                cluster._note(f"{stage.name}: {label} is whole")
        if reached and self.lifts:
            forks = self._forks.setdefault(
                stage.name, Forks(_Change(cluster), self.folder, stage.name)
            )
            forks.release()

    def _finish(self, stage: Stage) -> None:
        """Leave what standing() takes for done, or nothing where the stage is to be skipped."""
        found = standing(self.plan, stage, self.home)
        if found.state == "skipped":
            return
        assert found.state == "pending", f"{stage.name} runs though it is {found.state}"
        self._write_runs(stage, stage.phases)
        self.done.add(stage.name)

    def _write_runs(self, stage: Stage, phases: Sequence[str]) -> None:
        """The directories of a stage whose first phases are done."""
        found = standing(self.plan, stage, self.home)
        outcomes = {label: {"state": "unreached", "best": 9.9} for run, label in self.spots
                    if run == stage.name}  # fmt: skip
        entries = {phase: {"state": "done", "seconds": 1.0} for phase in phases}
        for directory, hash_ in (
            (found.run, stage.hash), (found.evaluation, stage.evaluation_hash)
        ):  # fmt: skip
            if directory is not None:
                directory.path.mkdir(parents=True, exist_ok=True)
                _write(directory.path / "config.json", {"format": FORMAT, "hash": hash_})
                _write(directory.path / "result.json", {"sweetspots": outcomes})
                state = "done" if phases == stage.phases else "failed"
                _write(
                    directory.path / "status.json",
                    {"state": state, "reason": "", "phases": entries},
                )

    def _record(self, stage: Stage, state: str, reason: str = "") -> None:
        """What a supervisor writes down."""
        path = self.folder / "stages" / f"{stage.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {"state": state, "code": 0, "reason": reason})


class _Change:
    """The cluster as a running job sees it: no submission breaks at what it asks."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.depend = cluster.change


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
