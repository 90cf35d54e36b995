"""Plans that are larger than what a cluster takes at once: portions, parents first, the report when
all are in, and nothing that stands below a failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launchers.slurm.fake_cluster import Broken, FakeCluster, FakeStages
from tests.launchers.slurm.test_random_plans import Graph
from tests.small_site import use
from tuning import launch as launching
from tuning.launch import Launch
from tuning.launchers.slurm import portions, snapshot
from tuning.launchers.slurm.client import TooMany
from tuning.launchers.slurm.ledger import REPORT
from tuning.launchers.slurm.outcome import Options, Outcome
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.submission import Submission
from tuning.manage.commands import cancel
from tuning.plan import Plan, Stage, standing
from tuning.runs import atomic
from tuning.runs.errors import EXIT_AGAIN, UserError
from tuning.runs.identity import digest

pytestmark = pytest.mark.unit


class Limited(FakeCluster):
    """A cluster that takes at most `most` jobs at a time."""

    most = 1_000_000
    peak = 0

    def _submit(self, script: Path) -> int:
        own = len(atomic.read_json(script.with_suffix(".json"))["stages"])
        live = sum(task.live for task in self.tasks)
        if live + own > self.most:
            raise TooMany("SLURM takes no more jobs of yours now (QOSMaxSubmitJobPerUserLimit).")
        self.peak = max(self.peak, live + own)
        return super()._submit(script)


class Reporting(FakeStages):
    """Stages whose report submits what is left, as the job does."""

    breaks: tuple[int, str, str] | None = None
    """Where the cluster breaks in the first report that submits."""

    def work(self, stage: Stage, cluster: FakeCluster) -> str | None:
        (task,) = (task for task in cluster.tasks if task.stage is stage)
        mine = stage.name == REPORT.name and task.token.startswith(f"{self.plan.experiment}.")
        if not mine or not (self.folder / "slurm" / "rest.json").exists():
            return super().work(stage, cluster)
        if self.breaks is not None:
            cluster.breaks, self.breaks = self.breaks, None
        code = portions.main([str(self.folder)])
        cluster.breaks = None
        return "again" if code == EXIT_AGAIN else "done"


class World:
    """A plan on such a cluster."""

    def __init__(self, home: Path, plan: Plan, settings: Cluster) -> None:
        rng = random.Random(0)
        self.home, self.plan, self.settings = home, plan, settings
        self.stages = Reporting(plan, home, rng)
        self.cluster = Limited(self.stages, rng, slots=4, memory=1000)

    def submit(self, **options) -> Outcome:
        """As `tuning submit` does."""
        return Submission(self.plan, self.settings, self.cluster, Options(**options)).run()

    def go_on(self) -> int:
        """Let everything run, reports and what they submit; how many portions that were."""
        before = self.cluster.submitted.count(REPORT.name)
        self.cluster.run_down()
        assert not (self.stages.folder / "slurm" / "rest.json").exists()
        return self.cluster.submitted.count(REPORT.name) - before

    def states(self) -> list[str]:
        return [standing(self.plan, s, self.home).state for s in self.plan.stages if s.has_work]


def chains(count: int) -> Plan:
    """SFT runs with two children each; the second child stands on a row without work."""
    stages = []
    for number in range(count):
        top, row = f"top-{number}", f"row-{number}"
        stages += [
            _stage(top, "sft"),
            Stage(name=row, role="base", hash="0", parents=(top,)),
            _stage(f"one-{number}", "pt", top),
            _stage(f"two-{number}", "pt", row),
        ]
    return Plan(experiment="trial", stages=tuple(stages))


def _stage(name: str, role: str, *parents: str) -> Stage:
    return Stage(name=name, role=role, hash=digest(name), parents=parents, script="run.py",
                 phases=("train",), task="math")  # fmt: skip


@pytest.fixture
def world(monkeypatch, tmp_path) -> Callable[[Plan], World]:
    """Makes the world of a plan, in which portions find its cluster."""
    home = use(monkeypatch, tmp_path)
    monkeypatch.setattr(snapshot, "take", lambda: Path("/code"))
    (tmp_path / "cluster.yaml").write_text("stages: {pft: {throttle: 2}}\n")

    def make(plan: Plan) -> World:
        made = World(home, plan, Cluster({"processes": 1}, {}, tmp_path / "cluster.yaml"))
        monkeypatch.setattr("tuning.launchers.slurm.client.Slurm", lambda: made.cluster)
        return made

    return make


@pytest.mark.parametrize("most", [3, 4, 7, 100])
def test_a_plan_is_submitted_in_portions(world, most):
    one = world(chains(4))
    one.cluster.most = most
    outcome = one.submit(max_submit=most)
    assert len(outcome.new) == min(12, most - 1)
    assert len(outcome.new) + len(outcome.left) == 12
    assert outcome.goes_on
    one.go_on()
    assert set(one.states()) == {"done"} and one.cluster.peak <= most
    submitted = [name for name in one.cluster.submitted if name != "report"]
    assert sorted(submitted) == sorted(set(submitted)), "a stage was submitted twice"
    assert not one.cluster.refusals


def test_a_limit_that_nobody_named_is_found_by_halves(world):
    one = world(chains(4))
    one.cluster.most = 5
    outcome = one.submit()
    assert (len(outcome.new), len(outcome.left)) == (3, 9)
    one.go_on()
    assert set(one.states()) == {"done"} and one.cluster.peak <= 5


def test_where_not_even_one_stage_fits_nothing_is_left_behind(world):
    one = world(chains(1))
    one.cluster.most = 1
    with pytest.raises(UserError, match="takes no more jobs of yours now"):
        one.submit()
    assert not [task for task in one.cluster.tasks if task.live]
    one.cluster.most = 100
    assert len(one.submit().new) == 3


def test_the_same_command_submits_what_there_is_room_for(world):
    one = world(chains(4))
    first = one.submit(max_submit=4)
    again = one.submit(max_submit=4)
    assert (len(first.new), len(again.new), len(again.queued)) == (3, 0, 3)
    assert again.goes_on and len(again.left) == 9
    more = one.submit(max_submit=9)
    assert (len(more.new), len(more.queued), len(more.left)) == (5, 3, 4)
    assert sum(task.live for task in one.cluster.tasks) == 9
    assert len(one.submit().new) == 4
    assert one.go_on() == 0
    assert set(one.states()) == {"done"}


def test_where_no_more_fits_the_report_that_waits_submits_the_rest(world):
    one = world(chains(2))
    one.cluster.slots, one.cluster.most = 0, 4
    assert len(one.submit(max_submit=4).new) == 3
    again = one.submit(max_submit=9)
    assert (again.new, len(again.left), again.goes_on) == ({}, 3, True)
    one.cluster.slots = 4
    one.go_on()
    assert set(one.states()) == {"done"}


def test_an_extended_plan_without_room_is_submitted_later(world):
    one = world(chains(1))
    one.submit(max_submit=4)
    one.plan = one.stages.plan = chains(2)
    assert one.submit(max_submit=4).new == {}
    one.go_on()
    assert set(one.states()) == {"done"}


def test_a_portion_that_somebody_submitted_meanwhile_is_not_submitted_again(world, capsys):
    one = world(chains(1))
    one.submit(max_submit=3)
    one.submit()
    before = list(one.cluster.submitted)
    assert portions.main([str(one.stages.folder)]) == 0
    assert one.cluster.submitted == before
    assert "everything was submitted meanwhile" in capsys.readouterr().out


def test_what_is_cancelled_before_its_portion_is_not_submitted(world, monkeypatch, capsys):
    one = world(chains(2))
    left = [stage.name for stage in one.submit(max_submit=3).left]
    assert "top-1" in left
    monkeypatch.setattr("tuning.manage.commands.Slurm", lambda: one.cluster)
    assert cancel(one.plan, "top-1") == 0
    assert "left out of the next portion: top-1" in capsys.readouterr().out
    one.go_on()
    assert not {"top-1", "one-1", "two-1"} & set(one.cluster.submitted)
    assert {"top-0", "one-0", "two-0"} <= set(one.cluster.submitted)


def test_a_plan_that_another_one_came_before_is_refused(world, monkeypatch):
    """Both were found to be the first of their name; the other one took the lock first."""
    one = world(chains(1))
    other = replace(one.plan, stages=(_stage("other", "sft"),))
    monkeypatch.setattr(
        launching, "_require_successor",
        lambda plan: Submission(other, one.settings, one.cluster).run(),
    )  # fmt: skip
    monkeypatch.setenv("TUNING_CLUSTER", str(one.settings.path))
    with pytest.raises(UserError, match="'trial' is another plan, and 'other', which this one"):
        launching.launch(one.plan, Launch(launcher="slurm", resources={"offline": False}))
    assert one.cluster.submitted == ["other", "report"]
    assert Plan.from_json(atomic.read_json(one.stages.folder / "plan.json")) == other


@pytest.mark.parametrize("text", ["{", "[]", '{"python": "/no/such/python"}'])
def test_a_rest_that_cannot_be_submitted_does_not_end_the_report(world, capsys, text):
    one = world(chains(1))
    rest = one.stages.folder / "slurm" / "rest.json"
    rest.parent.mkdir(parents=True)
    rest.write_text(text)
    portions.submit_rest(one.stages.folder)
    assert "error: the next portion was not submitted: " in capsys.readouterr().out


def test_no_portion_submits_what_failed_or_stands_below_it(world):
    one = world(chains(3))
    one.stages.faulty = {"top-1"}
    one.submit(max_submit=3)
    one.go_on()
    assert one.cluster.submitted.count("top-1") == 1
    below = {"one-1", "two-1"}
    left = {s.name for s, state in zip(_work(one.plan), one.states(), strict=True)
            if state != "done"}  # fmt: skip
    assert left == {"top-1", *below} and not below & set(one.cluster.submitted)
    one.stages.faulty = set()
    assert set(one.submit().new) == left
    one.go_on()
    assert set(one.states()) == {"done"}


def _work(plan: Plan) -> list[Stage]:
    return [stage for stage in plan.stages if stage.has_work]


def test_all_portions_ask_for_what_the_first_did(world, tmp_path):
    one = world(chains(2))
    one.submit(max_submit=3)
    one.settings.path.write_text("not: read\n")
    one.go_on()
    assert {task.throttle for task in one.cluster.tasks if task.stage.kind == "pft"} <= {1, 2}
    scripts = list((one.home / "outputs/reports/trial/slurm").glob("*pft*.sbatch"))
    assert len(scripts) > 1
    for script in scripts:
        assert "%2\n" in script.read_text()


def test_jobs_of_other_experiments_take_room(world):
    one = world(chains(2))
    other = Plan(experiment="other", stages=tuple(_stage(f"o{n}", "sft") for n in range(2)))
    Submission(other, one.settings, one.cluster).run()
    outcome = one.submit(max_submit=3)
    assert (outcome.new, len(outcome.left), outcome.goes_on) == ({}, 6, False)
    one.cluster.run_down()
    assert len(one.submit(max_submit=3).new) == 2


def test_a_report_that_finds_no_room_goes_back_into_the_queue(world, capsys):
    """It takes none there, and the limit holds all the time."""
    one = world(chains(2))
    one.submit(max_submit=4)
    names = [f"other-{n}" for n in range(7)]
    one.stages.moments = dict.fromkeys(names, 20)
    other = Plan(experiment="other", stages=tuple(_stage(name, "sft") for name in names))
    Submission(other, one.settings, one.cluster).run()
    one.cluster.peak, one.cluster.most = 0, 12
    one.go_on()
    assert set(one.states()) == {"done"} and one.cluster.peak <= 4
    assert (
        "0 stages submitted, 3 remain; other jobs of yours leave no room" in capsys.readouterr().out
    )


def test_a_report_that_slurm_has_no_room_for_tries_again(world, capsys):
    one = world(chains(2))
    one.cluster.most = 4
    one.submit()
    names = [f"other-{n}" for n in range(9)]
    one.stages.moments = dict.fromkeys(names, 20)
    one.cluster.most = 30
    other = Plan(experiment="other", stages=tuple(_stage(name, "sft") for name in names))
    Submission(other, one.settings, one.cluster).run()
    one.cluster.most = 5
    one.go_on()
    assert set(one.states()) == {"done"}
    assert "next portion: SLURM takes no more jobs of yours now" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("count", range(7, 12))
def test_a_report_that_is_killed_as_it_submits_completes_it_when_requeued(world, count, when):
    one = world(chains(2))
    one.submit(max_submit=4)
    one.stages.breaks = (count, "", when)
    for _ in range(2):
        try:
            one.go_on()
        except Broken:
            continue
        break
    assert set(one.states()) == {"done"}
    submitted = [name for name in one.cluster.submitted if name != REPORT.name]
    assert sorted(submitted) == sorted(set(submitted)), "a stage was submitted twice"


@pytest.mark.parametrize("seed", range(20))
def test_random_plans_end_in_portions_of_any_size(world, seed):
    """Some stages fail: what does not stand below them is done by portions alone, nothing is
    submitted twice, and the same command finishes what was put right.
    """
    rng = random.Random(seed)
    graph = Graph(rng)
    one = world(graph.make())
    one.stages.spots = graph.spots
    one.cluster.most = rng.randint(3, 9)
    one.stages.faulty = {s.name for s in _work(one.plan) if rng.random() < 0.15}
    named = one.cluster.most if rng.random() < 0.5 else None
    one.submit(max_submit=named)
    one.go_on()
    assert one.cluster.peak <= one.cluster.most
    ran = [t.stage.name for t in one.cluster.tasks if t.state != "CANCELLED"]
    ran = [name for name in ran if name != "report"]
    assert sorted(ran) == sorted(set(ran)), "a stage ran twice"
    stopped = set(one.stages.faulty)
    for stage in one.plan.stages:
        stopped |= {stage.name} if stopped & set(stage.parents) else set()
    for stage, state in zip(_work(one.plan), one.states(), strict=True):
        assert state != "pending" or stage.name in stopped, stage.name
    one.stages.faulty = set()
    one.submit(max_submit=named)
    one.go_on()
    assert set(one.states()) <= {"done", "skipped"}
