"""A thousand random experiments on a SLURM in memory: stages fail, are preempted and cancelled,
submissions break at any call, people submit again at any moment.

Whatever happens: no job is stuck, no stage runs on bad input, is in the queue twice or is submitted
though it is done; a failure stops its descendants only; and submitting again finishes everything.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launchers.slurm.fake_cluster import Broken, FakeCluster, FakeStages, Spot
from tests.launchers.slurm.small import CHAIN, Small, stage
from tuning.launchers.slurm.ledger import REPORT
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.submission import Outcome, Submission
from tuning.manage.status import stages_of
from tuning.plan import Plan, Stage, standing, sweetspot_ready
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.identity import digest

GRAPHS = 1000
CHUNKS = 10
ENDED = ("done", "skipped")
LABELS = ("ppl-3.0", "ppl-2.0")


class Graph:
    """A random plan, stage by stage."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.stages: list[Stage] = []
        self.spots: dict[tuple[str, str], Spot] = {}

    def make(self) -> Plan:
        """Up to twelve stages, some of which share parents, fork from sweetspots or stand for a
        row.
        """
        for _ in range(self.rng.randint(1, 12)):
            kind = self.rng.choice(
                ("sft", "sft", "pt", "pt", "fork", "fork", "spot", "row", "base")
            )
            getattr(self, f"_{kind}")()
        return Plan(experiment="trial", stages=tuple(self.stages))

    def _add(self, role: str, name: str, **values) -> Stage:
        values = {"script": f"run_{role}.py", "phases": ("train",), **values}
        stage = Stage(name=name, role=role, hash=digest(name), task="math", **values)
        self.stages.append(stage)
        return stage

    def _name(self) -> str:
        return f"s{len(self.stages)}"

    def _some(self, most: int) -> tuple[str, ...]:
        """Parents, or none."""
        count = self.rng.randint(0, min(most, len(self.stages)))
        return tuple(stage.name for stage in self.rng.sample(self.stages, count))

    def _sft(self) -> None:
        joinable = self.rng.random() < 0.5
        stage = self._add("sft", self._name(), parents=self._some(2), joinable=joinable)
        for label in LABELS:
            at = self.rng.choice((None, 1, 2, 3, 4))
            self.spots[stage.name, label] = Spot(at=at, used=self.rng.choice((10, 50, 50, 100)))

    def _pt(self) -> None:
        self._add("pt", self._name(), parents=self._some(3), phases=("train", "infer"),
                  evaluation_hash=digest(["pt", len(self.stages)]))  # fmt: skip

    def _base(self) -> None:
        name = self._name()
        self._add("base", name, parents=self._some(1), trains=False, artifact=name,
                  phases=("infer", "evaluate"), evaluation_hash=digest(name))  # fmt: skip

    def _row(self) -> None:
        self._add("base", self._name(), parents=self._some(2), trains=False, phases=(), script="")

    def _fork(self) -> None:
        if above := self._sft_stage():
            self._add("fork", f"{self._name()}-remaining", parents=(above,), parent=above,
                      sweetspot=self.rng.choice(LABELS), total_data=100)  # fmt: skip

    def _spot(self) -> None:
        if above := self._sft_stage():
            name = self._name()
            self._add("sweetspot", name, parents=(above,), parent=above, trains=False,
                      sweetspot=self.rng.choice(LABELS), artifact=name, phases=("infer",),
                      evaluation_hash=digest(name))  # fmt: skip

    def _sft_stage(self) -> str:
        names = [stage.name for stage in self.stages if stage.role == "sft"]
        return self.rng.choice(names) if names else ""


class World:
    """A plan, the cluster it runs on, and the person who submits it."""

    def __init__(self, seed: int, home: Path, settings: Cluster) -> None:
        rng = self.rng = random.Random(seed)
        graph = Graph(rng)
        self.home = home
        self.settings = settings
        larger = Cluster({"processes": 2, "mem": "8G"}, environ={}, path=settings.path)
        self.choices = (settings, larger)
        self.plan = graph.make()
        self.stages = FakeStages(self.plan, home, rng)
        self.stages.spots = graph.spots
        self.stages.lifts = rng.random() < 0.8
        self.cluster = FakeCluster(
            self.stages, rng, slots=rng.randint(1, 6), largest=rng.choice((1, 2, 3, 1001)),
            period=rng.randint(1, 4), memory=rng.choice((5, 15, 60)),
            busy=rng.choice((0.0, 0.0, 0.3)),
        )  # fmt: skip
        self._give_fates()

    def _give_fates(self) -> None:
        """How often each stage fails before it ends well; a few fail until they are put right."""
        rng, trouble = self.rng, self.rng.choice((0.0, 0.1, 0.3))
        for each in self.plan.stages:
            self.stages.moments[each.name] = rng.randint(1, 6)
            if rng.random() < trouble:
                events = ("failed", "failed", "killed", "again", "again", "late")
                self.stages.events[each.name] = rng.choices(events, k=rng.randint(1, 3))
            if rng.random() < trouble / 2:
                self.stages.faulty.add(each.name)

    def run(self, settings: Cluster | None = None) -> Outcome:
        """Submit; nothing that had ended before may be submitted."""
        if not self.cluster.live:
            self._forget_late_ends()
        ended = {name for name in self.with_work if self.stands(name) in ENDED}
        count = len(self.cluster.submitted)
        self.cluster._note("-- tuning submit")
        try:
            return Submission(self.plan, settings or self.settings, self.cluster).run()
        finally:
            again = ended & set(self.cluster.submitted[count:])
            assert not again, f"{again} had ended and are submitted again"
            require_own_resources(self.cluster)

    def _forget_late_ends(self) -> None:
        """What was killed when all was written stops nothing that is submitted from now on."""
        for name, end in self.stages.last.items():
            self.stages.last[name] = "done" if end == "late" else end

    def run_in_trouble(self) -> bool:
        """Submit as it goes when things go wrong; whether it went through."""
        trouble = self.rng.random()
        if trouble < 0.4:
            when = self.rng.choice(("before", "half", "after"))
            self.cluster.breaks = (self.rng.randint(1, 14), "", when)
        elif trouble < 0.5:
            self.cluster.refusals = [self.rng.randint(1, 3)]
        elif trouble < 0.6:
            self.ask_for_too_much()
        if trouble > 0.8:
            self.settings = self.rng.choice(self.choices)
            for task in self.cluster.live.values():
                task.stuck = task.state == "PENDING" and self.rng.random() < 0.3
        try:
            self.run()
            return True
        except (Broken, UserError, StageFailed) as error:
            self.cluster._note(f"-- broken: {type(error).__name__} {error}")
            return False
        finally:
            self.cluster.breaks, self.cluster.refusals = None, []

    def ask_for_too_much(self) -> None:
        """A submission that the cluster could never run changes nothing that is queued, or nothing
        is left of it.
        """
        known = self.rng.random() < 0.5
        which = "impossible" if known else "unchangeable"
        setattr(self.cluster, which, "900G")
        queued, now = [t for t in self.cluster.tasks if t.live], self.cluster.now
        before = {task.id: task.stage.name for task in queued}
        released = {task.stage.name for task in queued if not task.held}
        with contextlib.suppress(UserError, StageFailed):
            self.run(Cluster({"processes": 2, "mem": "900G"}, environ={}, path=self.settings.path))
        setattr(self.cluster, which, "")
        live = {task.id: task for task in self.cluster.tasks if task.live}
        new = [task for task in live.values() if task.id not in before]
        assert {t.stage.name for t in new} <= {*before.values(), REPORT.name}, "it is left"
        assert all(t.mem != "900G" or t.stage.name == REPORT.name for t in new)
        if self.cluster.now == now:
            self.require_kept(released - {task.stage.name for task in live.values()})

    def require_kept(self, lost: set[str]) -> None:
        """Fail unless what is no longer queued could not have started."""
        doomed = {t.stage.name for t in self.cluster.tasks if t.doomed}
        for name in (n for n in lost - doomed - {REPORT.name} if self.stands(n) not in ENDED):
            above = self.plan.stage(name).parents
            gone = [p for p in above if self.stands(p) not in ENDED and p not in self.cluster.live]
            assert gone, f"{name} was queued and was cancelled for nothing"

    def disturb(self) -> None:
        """Some time passes, and somebody may cancel jobs."""
        for _ in range(self.rng.choice((0, 0, 1, 3, 10))):
            self.cluster.step()
        live = sorted(task.id for task in self.cluster.tasks if task.live)
        if live and self.rng.random() < 0.2:
            chosen = self.rng.sample(live, self.rng.randint(1, len(live)))
            names = {t.stage.name for t in self.cluster.tasks if t.id in chosen}
            self.cluster.end_by_force(chosen)
            self.stages.last |= dict.fromkeys(names, "cancelled")

    def stands(self, name: str) -> str:
        """How a stage stands on disk."""
        return standing(self.plan, self.plan.stage(name), self.home).state

    @property
    def with_work(self) -> list[str]:
        """The stages that have something to do."""
        return [stage.name for stage in self.plan.stages if stage.has_work]

    def check(self) -> None:
        """What must hold when a submission went through and the cluster came to rest."""
        stuck = [(t.id, t.stage.name, t.reason) for t in self.cluster.tasks if t.live]
        assert not stuck, f"stuck for ever: {stuck}"
        self.check_states()
        stopping = {
            name for name in self.with_work
            if self.stages.last.get(name) in ("failed", "killed", "cancelled", "late")
        }  # fmt: skip
        for each in self.plan.stages:
            if each.has_work and self.stands(each.name) not in ENDED:
                reason = stopping & {each.name, *self._ancestors(each)}
                assert reason, f"{each.name} did not run, and nothing above it failed"

    def check_states(self) -> None:
        """What has failed is not called done, by the directories or by the status."""
        told = {entry.stage: entry.state for entry in stages_of(self.plan, self.home, self.cluster)}
        for name in self.with_work:
            stands = self.stands(name)
            assert (stands == "done") == (name in self.stages.done), name
            assert (told[name] == "done") == (name in self.stages.done), name
            assert (told[name] in ENDED) == (stands in ENDED), name

    def _ancestors(self, stage: Stage) -> set[str]:
        """Every stage that one stands on; none of a fork that was let go in time."""
        let_go = self.stages.lifts and not self.cluster.busy
        if let_go and sweetspot_ready(self.plan, stage, self.home):
            return set()
        found: set[str] = set()
        for name in stage.parents:
            found |= {name} | self._ancestors(self.plan.stage(name))
        return found

    def play(self) -> None:
        """Troubled days, then everything is put right and submitted until it is done."""
        for _ in range(self.rng.randint(1, 5)):
            went_through = self.run_in_trouble()
            self.disturb()
            if self.rng.random() < 0.5:
                self.check_states()
            else:
                self.cluster.run_down()
                if went_through:
                    self.check()
        self.stages.faulty = set()
        self.finish()

    def finish(self) -> None:
        """Submit until all is done; then submitting does nothing."""
        for _ in range(3 + sum(len(events) for events in self.stages.events.values())):
            self.run()
            self.cluster.run_down()
            self.check()
            if all(self.stands(name) in ENDED for name in self.with_work):
                break
        left = {name: self.stands(name) for name in self.with_work}
        assert set(left.values()) <= set(ENDED), f"never done: {left}"
        count = len(self.cluster.calls)
        outcome = self.run()
        assert (outcome.new, outcome.queued) == ({}, {})
        assert "submit" not in self.cluster.calls[count:]


def require_own_resources(cluster: FakeCluster) -> None:
    """Fail unless what several processes can train has two, and everything else one."""
    wrong = [t.id for t in cluster.tasks if t.processes != (2 if t.stage.shareable else 1)]
    assert not wrong, f"{wrong} have the resources of other stages"


def world(seed: int, root: Path, settings: Cluster, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world of a seed, in a home of its own."""
    home = root / str(seed)
    home.mkdir()
    monkeypatch.setenv("TUNING_HOME", str(home))
    return World(seed, home, settings)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_whatever_happens_submitting_again_finishes_an_experiment(
    chunk, memory, settings, monkeypatch
):
    size = GRAPHS // CHUNKS
    for seed in range(chunk * size, (chunk + 1) * size):
        one = world(seed, memory, settings, monkeypatch)
        try:
            one.play()
        except Exception as error:
            plan = "\n".join(f"{s.name} {s.role} <- {s.parents} {s.sweetspot or ''}"
                             for s in one.plan.stages)  # fmt: skip
            history = "\n".join(one.cluster.history)
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{plan}\n{history}")
        shutil.rmtree(one.home)


PAIRS = 200


def part(plan: Plan, name: str, rng: random.Random) -> Plan:
    """An experiment of some stages of a plan and all that they stand on."""
    wanted: set[str] = set()
    for each in reversed(plan.stages):
        if each.name in wanted or rng.random() < 0.4:
            wanted |= {each.name, *each.parents}
    return Plan(experiment=name, stages=tuple(s for s in plan.stages if s.name in wanted))


def test_experiments_that_share_runs_queue_each_of_them_once(memory, settings, monkeypatch):
    """Two people, in turns, at any moment; the cluster refuses to have a stage twice."""
    for seed in range(PAIRS):
        one = world(seed, memory, settings, monkeypatch)
        one.stages.lifts = False
        one.cluster.busy = 0.0
        plans = [part(one.plan, name, one.rng) for name in ("first", "second")]
        try:
            for _ in range(one.rng.randint(2, 6)):
                Submission(one.rng.choice(plans), settings, one.cluster).run()
                one.disturb()
            one.stages.faulty, one.stages.events = set(), {}
            for _ in range(4):
                one.cluster.run_down()
                one._forget_late_ends()
                for plan in plans:
                    Submission(plan, settings, one.cluster).run()
            one.cluster.run_down()
            names = {s.name for plan in plans for s in plan.stages if s.has_work}
            assert {one.stands(name) for name in names} <= {*ENDED}
            assert not one.cluster.live
        except Exception as error:
            lists = "\n".join(f"{p.experiment}: {[s.name for s in p.stages]}" for p in plans)
            history = "\n".join(one.cluster.history)
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{lists}\n{history}")
        shutil.rmtree(one.home)


MIXED = (
    stage("a", role="pretrain"), stage("b", "a", role="sft"), stage("d", "a", "b"),
    stage("row", "b", script="", phases=(), trains=False), stage("c", "row"),
    stage("e", role="reference_sft"),
)  # fmt: skip


@pytest.mark.unit
def test_stages_of_a_kind_that_ask_for_different_resources_are_different_arrays(small):
    """SFT by the engine gets the nodes that were asked for, also beside SFT with TRL."""
    sft = [stage(name, role="sft", joinable=name[0] == "e") for name in ("t1", "e1", "t2", "e2")]
    one = small(*sft, stage("p", "t1", "e1"))
    outcome = one.submit()
    require_own_resources(one.cluster)
    arrays = {outcome.new[name].number for name in ("t1", "t2")}
    assert len(arrays) == 1 and arrays.isdisjoint({outcome.new[name].number for name in ("e1",)})
    tokens = sorted({task.token for task in one.cluster.tasks})
    number = outcome.new["t1"].token.split(".")[1]
    assert tokens == [f"small.{number}.{part}" for part in ("pft", "report", "sft-1", "sft-2")]
    one.cluster.run_down()
    assert set(one.states().values()) == {"done"}


@pytest.mark.unit
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_submission_that_breaks_at_any_call_is_finished_by_the_next(
    when, memory, settings, monkeypatch
):
    for call in range(1, 40):
        home = memory / f"{when}{call}"
        monkeypatch.setenv("TUNING_HOME", str(home))
        one = Small(home, settings, *MIXED)
        one.cluster.breaks = (call, "", when)
        try:
            one.submit()
        except Broken:
            assert set(one.finish().values()) == {"done"}, f"call {call}"
            assert not one.cluster.live
        else:
            assert call > 10
            return
    pytest.fail("no submission went through")


@pytest.mark.unit
def test_children_of_a_failed_stage_that_still_wait_for_it_are_submitted_anew(small):
    one = small(*CHAIN, period=9)
    one.stages.events["a"] = ["failed"]
    one.submit()
    one.steps(12)
    assert one.stages.last == {"a": "failed"}
    assert {"b", "c"} <= one.cluster.live.keys()
    assert one.finish() == dict.fromkeys("abc", "done")


@pytest.mark.unit
@pytest.mark.parametrize("others", [(), (stage("z"),)], ids=["alone", "in-an-array"])
def test_what_waits_for_a_stage_that_was_cancelled_before_it_started_does_not_run(small, others):
    above = stage("a", role="sft")
    one = small(above, stage("b", "a"), *(replace(o, role="sft") for o in others), slots=0)
    one.submit()
    one.cluster.end_by_force([one.cluster.live["a"].id])
    one.cluster.slots = 2
    one.cluster.run_down()
    assert (one.states()["b"], one.stages.last.get("b")) == ("pending", None)


@pytest.mark.unit
def test_a_submission_that_broke_when_all_was_released_is_no_trouble_while_stages_run(small):
    one = small(*CHAIN)
    one.stages.moments["a"] = 9
    one.cluster.breaks = (1, "release", "after")
    with pytest.raises(Broken):
        one.submit(dependency="afterok:999")
    one.steps(2)
    assert one.cluster.live["a"].state == "RUNNING"
    assert set(one.submit(dependency="afterok:999").queued) == set("abc")
    one.cluster.run_down()
    assert one.states() == dict.fromkeys("abc", "done")


@pytest.mark.unit
@pytest.mark.parametrize("seed", range(8))
def test_an_array_that_was_refused_is_not_taken_for_the_next_one_of_its_name(small, seed):
    one = small(stage("a", role="sft"), stage("b", "a"))
    one.cluster.rng.seed(seed)
    one.cluster.refusals = [2]
    with pytest.raises(UserError):
        one.submit()
    one.cluster.breaks = (1, "submit", "after")
    with pytest.raises(Broken):
        one.submit()
    assert one.finish() == {"a": "done", "b": "done"}
    assert not one.cluster.live


@pytest.mark.unit
def test_stages_that_a_smaller_plan_leaves_out_do_not_run_unconnected(small):
    one = small(*CHAIN)
    one.cluster.breaks = (1, "depend", "before")
    with pytest.raises(Broken):
        one.submit()
    one.submit(Plan(experiment="small", stages=CHAIN[:2]))
    one.cluster.run_down()
    assert one.states() == {"a": "done", "b": "done", "c": "pending"}
    assert not one.cluster.live


@pytest.mark.unit
def test_a_fork_runs_beside_sft_and_outlives_it(small):
    sft = stage("sft", role="sft")
    fork = stage("fork-remaining", "sft", role="fork", parent="sft", sweetspot="ppl-2.0",
                 total_data=100)  # fmt: skip
    one = small(sft, fork, stage("below", fork.name))
    one.stages.spots["sft", "ppl-2.0"] = Spot(at=2, used=40)
    one.stages.moments["sft"] = 20
    one.submit()
    one.steps(10)
    assert one.states() == {"sft": "pending", fork.name: "done", "below": "done"}
    one.cluster.end_by_force([one.cluster.live["sft"].id])
    one.steps(2)
    assert one.finish() == dict.fromkeys(one.states(), "done")
    assert [name for name in one.cluster.submitted if name != "sft"].count(fork.name) == 1


@pytest.mark.unit
def test_a_queued_stage_with_other_settings_is_not_submitted_beside_itself(small):
    one = small(*CHAIN)
    one.submit()
    other = Plan(experiment="small", stages=(replace(CHAIN[0], seed=7), *CHAIN[1:]))
    with pytest.raises(UserError, match=r"'a' is queued with other settings as job 1_0.*cancel"):
        one.submit(other)


@pytest.mark.unit
def test_a_first_stage_waits_for_what_the_user_names(small):
    one = small(*CHAIN)
    one.submit(dependency="afterok:77")
    told = [line[6:] for line in one.cluster.history if "depend " in line]
    assert told[:3] == [
        "depend 1_[0] afterok:77", "depend 1_[1] afterok:1_0", "depend 1_[2] afterok:1_1"
    ]  # fmt: skip
