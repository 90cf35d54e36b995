"""A search on a SLURM in memory: the report of each round submits the next, in one command and
however often it is requeued.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launchers.slurm.fake_cluster import Broken, FakeCluster
from tests.report.fake_experiment import Fake, budget, made_up
from tests.small_site import use
from tuning.experiments.budget import budget_plan
from tuning.experiments.merge import merged
from tuning.experiments.search import Rounds
from tuning.launchers.slurm import rounds as controller
from tuning.launchers.slurm import snapshot
from tuning.launchers.slurm.outcome import Options
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan, Stage
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.search.config import SearchConfig
from tuning.search.rounds import Round, Step, actions

pytestmark = pytest.mark.unit


class Stages:
    """What tasks run: made-up runs, and the next round in the report; one stage may fail."""

    def __init__(self, home: Path, whole: Plan, folder: Path) -> None:
        self.home, self.whole, self.folder = home, whole, folder
        self.fails: set[str] = set()
        self.starts = 1
        """How often a report runs: one that is requeued runs again."""
        self.breaks: tuple[int, str, str] | None = None
        """Where the cluster breaks in the first report."""

    def start(self, stage: Stage) -> None: ...
    def cancelled(self, stage: Stage) -> None: ...

    def work(self, stage: Stage, cluster: FakeCluster) -> str:
        if stage.role == "report":
            if self.breaks is not None:
                cluster.breaks, self.breaks = self.breaks, None
            for _ in range(self.starts):
                controller.main([str(self.folder)])
            cluster.breaks = None
            return "done"
        if stage.name in self.fails:
            return "failed"
        plan = Plan.from_json(atomic.read_json(self.folder / "plan.json"))
        Fake(self.home, plan, made_up(self.whole), prompts=50, samples=4).write_stage(stage)
        return "done"


class World:
    """A search on such a cluster."""

    def __init__(self, home: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ratios = ("0", "0.1", "0.25", "0.5", "0.75", "1")
        self.whole = budget_plan(budget(sft_ratios=ratios, pft_methods=("dpo", "kto")))[0]
        self.config = SearchConfig(max_runs=4, batch=1)
        self.folder = home / "outputs/reports" / self.whole.experiment
        self.stages = Stages(home, self.whole, self.folder)
        rng = random.Random(0)
        self.cluster = FakeCluster(self.stages, rng, slots=4, memory=1000)
        self.settings = Cluster({"processes": 1}, {}, root / "cluster.yaml")
        monkeypatch.setattr("tuning.launchers.slurm.client.Slurm", lambda: self.cluster)

    def submit(self) -> None:
        """As `tuning submit --search` does."""
        rounds, options = Rounds.begin(self.whole, self.config), Options()
        plan = rounds.resume()
        controller.write_asked(self.folder, rounds.record.plan, self.settings, options)
        Submission(plan, self.settings, self.cluster, options).run()

    @property
    def rounds(self) -> Rounds:
        found = Rounds.recorded(self.folder)
        assert found is not None
        return found

    @property
    def submitted(self) -> list[str]:
        """Every stage that was submitted, in order."""
        return [name for name in self.cluster.submitted if name != "report"]


@pytest.fixture
def world(monkeypatch, tmp_path) -> World:
    home = use(monkeypatch, tmp_path)
    monkeypatch.setattr(snapshot, "take", lambda: Path("/code"))
    (tmp_path / "cluster.yaml").write_text("stages: {}\n")
    return World(home, tmp_path, monkeypatch)


def test_one_command_carries_out_all_rounds(world: World, capsys):
    world.submit()
    assert len(world.rounds.record.rounds) == 1
    world.cluster.run_down()
    assert world.rounds.last.end
    assert "search: ends after" in capsys.readouterr().out
    extended = [s for s in actions(world.rounds.record.rounds).values() if s == "extend"]
    runs = [name for name in world.submitted if name.startswith("tiny_")]
    twice = [name for name in set(runs) if runs.count(name) > 1]
    assert len(twice) == len(extended), "only what is extended is submitted again"
    before = list(world.submitted)
    world.submit()
    assert world.submitted == before


def test_reports_that_are_requeued_change_no_decision(world: World, monkeypatch, tmp_path):
    world.submit()
    world.cluster.run_down()
    straight = world.rounds.record.rounds
    (tmp_path / "other").mkdir()
    home = use(monkeypatch, tmp_path / "other")
    (tmp_path / "other" / "cluster.yaml").write_text("stages: {}\n")
    other = World(home, tmp_path / "other", monkeypatch)
    other.stages.starts = 3
    other.submit()
    other.cluster.run_down()
    assert other.rounds.record.rounds == straight
    assert sorted(other.submitted) == sorted(world.submitted)


def test_a_round_that_was_decided_and_not_submitted_is_submitted(world: World, monkeypatch):
    class Gone(Exception):
        """The report is killed as it submits."""

    def killed(*_: object) -> None:
        raise Gone

    world.submit()
    real = Submission.submit
    with monkeypatch.context() as patch:
        patch.setattr(Submission, "submit", killed)
        with pytest.raises(Gone):
            world.cluster.run_down()
    assert Submission.submit is real and len(world.rounds.record.rounds) == 2
    world.cluster.run_down()
    assert world.rounds.last.end


def test_what_failed_waits_for_the_user_while_the_search_goes_on(world: World):
    world.submit()
    first = {stage.name for stage in world.rounds.plan.stages}
    for stage in world.whole.stages:
        if stage.role in ("pt", "reference_pt", "reference_sft") and stage.name not in first:
            world.stages.fails.add(stage.name)
            break
    world.cluster.run_down()
    (failed,) = world.stages.fails
    assert world.rounds.last.end
    assert world.submitted.count(failed) <= 1
    if failed in world.submitted:
        world.stages.fails.clear()
        world.submit()
        world.cluster.run_down()
        assert world.submitted.count(failed) == 2


def test_a_grid_that_takes_the_place_of_a_search_ends_it(world: World, capsys):
    world.submit()
    Submission(world.whole, world.settings, world.cluster, Options()).run()
    world.cluster.run_down()
    assert "the experiment is no search any more" in capsys.readouterr().out
    assert len(world.rounds.record.rounds) == 1


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("count", [7, 9, 11])
def test_a_report_that_is_killed_as_it_submits_completes_it_when_requeued(
    world: World, count: int, when: str
):
    world.submit()
    world.stages.breaks = (count, "", when)
    for _ in range(2):
        try:
            world.cluster.run_down()
        except Broken:
            continue
        break
    assert world.rounds.last.end
    assert not world.cluster.live


def test_a_search_goes_on_beside_what_starts_from_a_run_that_failed(world: World):
    """Both methods start from one SFT run: where it failed, neither is waited for."""
    world.config = SearchConfig(max_runs=11, batch=3)
    world.submit()
    world.stages.fails = {s.name for s in world.whole.stages if s.role == "sft"}
    world.cluster.run_down()
    assert world.rounds.last.end
    chosen = [s for s in world.rounds.plan.stages if s.parent in world.stages.fails]
    assert len(chosen) > len({s.parent for s in chosen}), "no two start from one run"
    tried = [name for name in world.submitted if name in world.stages.fails]
    assert sorted(tried) == sorted(set(tried))


def test_a_search_goes_on_from_runs_that_another_experiment_has_queued(world: World):
    world.config = SearchConfig(max_runs=11, batch=1, first=1.0)
    world.submit()
    steps = [Step(arm=arm.key, action="start", why="") for arm in world.rounds.search.arms]
    whole = replace(world.rounds.record, rounds=(Round(steps=tuple(steps)),))
    every = replace(Rounds(whole, world.folder).plan, experiment="every")
    outcome = Submission(every, world.settings, world.cluster, Options()).run()
    assert outcome.shared and outcome.new
    world.cluster.end_by_force([world.cluster.live["report"].id])
    world.cluster.run_down()
    assert world.rounds.last.end


def test_settings_that_differ_are_not_taken_for_seeds(world: World):
    several = [
        budget_plan(budget(sft_ratios=("0", "1"), sft_values={"learning_rate": rate}))[0]
        for rate in (1e-4, 2e-3)
    ]
    with pytest.raises(UserError, match="--search would take runs of different settings for seeds"):
        Rounds.begin(merged(several, "trial"), SearchConfig())
