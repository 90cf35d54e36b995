"""A search as plans: the runs of each round, what it records, and what it refuses. The runs are
made up (tests/report/fake_experiment.py); their files are real.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.fake_experiment import Fake, budget, made_up
from tests.small_site import use
from tuning.evaluation.before_after import HeldOutConfig
from tuning.evaluation.scoring import first_scores
from tuning.experiments.budget import budget_plan
from tuning.experiments.search import Rounds, pending
from tuning.manage.commands import status
from tuning.plan import Plan, save_plan, standing
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.measured import read
from tuning.runs.rundir import RunDirectory
from tuning.search.config import SearchConfig
from tuning.search.grid import WAYS, arms_of, results
from tuning.search.rounds import EXTEND, SCREEN, START, STOP, actions

pytestmark = pytest.mark.unit

RATIOS = ("0", "0.1", "0.25", "0.5", "0.75", "1")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def whole(**changes) -> Plan:
    return budget_plan(budget(sft_ratios=RATIOS, **changes))[0]


def carry_out(home: Path, rounds: Rounds, plan: Plan | None) -> None:
    """Write the runs of round after round until the search is over."""
    while plan is not None:
        fake = Fake(home=home, plan=plan, scores=made_up(rounds.record.plan), prompts=50, samples=4)
        for stage in pending(plan):
            fake.write_stage(stage)
        assert not pending(plan)
        plan = rounds.advance()


def test_the_arms_of_a_grid_are_its_splits():
    plan = whole(train_sizes=(100, 200), pft_methods=("dpo", "kto"), seeds=(1, 2))
    arms = arms_of(plan)
    assert len(arms) == 2 * (5 * 2 + 1)
    assert {len(stages) for stages in arms.values()} == {2}
    for arm, stages in arms.items():
        assert all(plan.about["model_of"][stage.name] == arm.model for stage in stages)
        sizes = {arm.n_sft, arm.size - arm.n_sft} - {0}
        assert all(stage.train_size in sizes for stage in stages)


@pytest.mark.parametrize("cost", ["0.5", "1", "4"])
def test_the_ratio_of_an_arm_is_its_share_of_the_cost(home, cost):
    """Whatever an example costs, arms lie at the ratios of the grid, and can be searched."""
    plan = whole(train_sizes=(100, 1000), sft_cost=cost)
    rounds = Rounds.begin(plan, SearchConfig())
    found = {round(arm.ratio, 3) for arm in rounds.stages}
    assert all(min(abs(ratio - float(r)) for r in RATIOS) < 0.03 for ratio in found)
    assert {0.0, 1.0} <= found and len(rounds.stages) == 2 * len(RATIOS)
    by_role = {s.role: (arm, s) for arm, (s,) in rounds.stages.items()}
    sft, stage = by_role["reference_sft"]
    assert (sft.n_sft, sft.ratio) == (stage.train_size, 1.0)
    carry_out(home, rounds, rounds.resume())
    assert rounds.last.end


def test_the_first_share_of_all_seeds_decides_while_any_has_no_more(home):
    """A seed that was evaluated before on all prompts lends its first ones."""
    plan = whole(seeds=(1, 2, 3))
    arm, stages = next((a, s) for a, s in arms_of(plan).items() if a.method and a.n_sft)
    fake = Fake(home=home, plan=plan, scores=made_up(plan), prompts=50, samples=4)
    fake.write_stage(stages[0])
    first = [replace(stage, first_prompts=10) for stage in stages]
    screened = replace(plan, stages=tuple(first))
    for stage in first[1:]:
        fake.write_stage(stage)
    (found,) = results(screened, {arm: first}, home).values()
    assert found.full is None and found.first and found.first.prompts == 10
    parts = [standing(screened, stage, home).evaluation for stage in first]
    files = ["scores.json", first_scores(10), first_scores(10)]
    scores = [atomic.read_json(p.path / f) for p, f in zip(parts, files, strict=True) if p]
    right = sum(sum(each["correct"][:10]) for each in scores)
    assert found.first.score == pytest.approx(right / (3 * 4 * 10))
    for stage in stages[1:]:
        fake.write_stage(stage)
    (found,) = results(screened, {arm: first}, home).values()
    assert found.first is None and found.full and found.full.prompts == 50


def test_a_round_has_its_runs_and_what_they_start_from():
    plan = whole(train_sizes=(100, 200))
    rounds = Rounds.begin(plan, SearchConfig(batch=2))
    chosen = actions(rounds.record.rounds)
    assert len(chosen) == 2 and set(chosen.values()) == {START}
    arms = {arm.key: stages for arm, stages in arms_of(plan).items()}
    names = {stage.name for key in chosen for stage in arms[key]}
    made = rounds.plan
    known = {stage.name for stage in made.stages}
    assert names <= known and all(set(s.parents) <= known for s in made.stages)
    assert [s for s in made.stages if s.role == "base"]
    for stage in made.stages:
        if stage.role == "sft":
            assert stage.phases == ("train",)
    assert made.about["search"] == {"max_runs": None, "batch": 2, "first": 0.25}
    assert made.experiment == plan.experiment


def test_what_a_search_measures_is_what_it_scores(home):
    """Not the SFT that it only starts from; and of a screened run again on all prompts."""
    rounds = Rounds.begin(whole(held_out=HeldOutConfig()), SearchConfig(max_runs=6, batch=1))
    plan = rounds.resume()
    seen = set()
    while plan is not None:
        for stage in plan.stages:
            assert (stage.before_after is None) == ("measure" not in stage.phases)
            assert (stage.role in WAYS) == ("measure" in stage.phases)
        fake = Fake(home=home, plan=plan, scores=made_up(rounds.record.plan), prompts=50, samples=4)
        for stage in pending(plan):
            fake.write_stage(stage)
            seen |= {(stage.name, stage.first_prompts)} if stage.role in WAYS else set()
        assert not pending(plan)
        plan = rounds.advance()
    extended = {name for name, first in seen if first} & {name for name, first in seen if not first}
    assert extended
    for name in extended:
        found = read(RunDirectory(home / "models" / name))
        assert found and found.get("first_prompts") is None


def test_a_search_of_made_up_runs_ends_and_leaves_the_rest_of_the_grid(home):
    rounds = Rounds.begin(whole(train_sizes=(1000,), pft_methods=("dpo", "kto")), SearchConfig())
    carry_out(home, rounds, rounds.resume())
    done = actions(rounds.record.rounds)
    assert rounds.last.end and len(done) <= 5
    assert set(done.values()) <= {START, EXTEND, STOP}
    arms = {arm.key: stage for arm, (stage,) in rounds.stages.items()}
    for key, stage in arms.items():
        found = standing(rounds.record.plan, stage, home)
        assert found.run and found.run.done("train") is (key in done)
        assert found.evaluation and found.evaluation.done("evaluate") is (
            done.get(key) in (START, EXTEND)
        )
    best = rounds.last.beliefs[0]
    assert best.best in done and best.low <= best.score <= best.high


def test_a_search_that_begins_again_continues_with_the_same_decisions(monkeypatch, tmp_path, home):
    settings = SearchConfig(batch=1)
    rounds = Rounds.begin(whole(), settings)
    carry_out(home, rounds, rounds.resume())
    (tmp_path / "other").mkdir()
    other = use(monkeypatch, tmp_path / "other")
    while True:
        again = Rounds.begin(whole(), settings)
        plan = again.resume()
        if again.last.end:
            break
        fake = Fake(home=other, plan=plan, scores=made_up(whole()), prompts=50, samples=4)
        fake.write_stage(pending(plan)[0])  # killed after each run
    assert again.record.rounds == rounds.record.rounds


def test_runs_that_are_there_already_are_taken_at_once(home):
    plan = whole()
    Fake(home=home, plan=plan, scores=made_up(plan), prompts=50, samples=4).write()
    rounds = Rounds.begin(plan, SearchConfig(batch=1))
    assert not pending(rounds.resume()) and rounds.last.end
    assert SCREEN not in actions(rounds.record.rounds).values()


def test_a_raised_cap_continues_an_ended_search(home):
    rounds = Rounds.begin(whole(), SearchConfig(max_runs=2, batch=1))
    carry_out(home, rounds, rounds.resume())
    few = len(actions(rounds.record.rounds))
    more = Rounds.begin(whole(), SearchConfig(max_runs=6, batch=1))
    carry_out(home, more, more.resume())
    assert len(actions(more.record.rounds)) > few


def test_the_first_share_is_of_the_evaluation_of_the_whole(home):
    rounds = Rounds.begin(whole(), SearchConfig(max_runs=6, batch=1, first=0.5))
    plan = rounds.resume()
    screened = set()
    while plan is not None:
        screened |= {(s.name, s.first_prompts) for s in plan.stages if s.first_prompts}
        fake = Fake(home=home, plan=plan, scores=made_up(rounds.record.plan), prompts=50)
        for stage in pending(plan):
            fake.write_stage(stage)
        plan = rounds.advance()
    assert screened and {first for _, first in screened} == {25}
    assert SCREEN not in actions(rounds.record.rounds).values()
    hashes = {s.name: (s.hash, s.evaluation_hash) for s in rounds.record.plan.stages}
    assert all(hashes[s.name] == (s.hash, s.evaluation_hash) for s in rounds.plan.stages)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_evaluation": False}, "a search trains, samples and scores"),
        ({"sft_ratios": ("1",), "pft_methods": ()}, "needs two splits to choose from"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        Rounds.begin(budget_plan(budget(**changes))[0], SearchConfig())


def test_another_search_of_the_same_name_is_refused(home):
    rounds = Rounds.begin(whole(), SearchConfig())
    rounds.resume()
    other = whole(sft_values={"learning_rate": 1e-3})
    with pytest.raises(UserError, match="with other settings; choose another --experiment name"):
        Rounds.begin(other, SearchConfig())
    run = next(iter(actions(rounds.record.rounds)))
    with pytest.raises(UserError, match=f"has run '{run}', which is not among these splits"):
        Rounds.begin(whole(train_sizes=(77,)), SearchConfig())


def test_an_edited_record_is_one_clear_error(home):
    rounds = Rounds.begin(whole(), SearchConfig())
    rounds.resume()
    path = rounds.folder / "search.json"
    found = atomic.read_json(path)
    atomic.write_json(path, found | {"rounds": [{"steps": 3}]})
    with pytest.raises(UserError, match=r"search\.json' was edited or damaged"):
        Rounds.begin(whole(), SearchConfig())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_runs": 0}, "max_runs is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"first": 0.0}, "first is 0.0; it must be above 0 and at most 1"),
        ({"first": 1.5}, "first is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_settings_of_a_search_have_their_bounds(changes, said):
    with pytest.raises(UserError, match=said):
        SearchConfig(**changes)


def test_the_status_of_a_search_here_asks_no_slurm(home, monkeypatch, capsys):
    """Between two rounds everything has ended and the search is not over."""
    rounds = Rounds.begin(whole(), SearchConfig())
    plan = rounds.resume()
    save_plan(rounds.folder, plan)
    Fake(home=home, plan=plan, scores=made_up(plan), prompts=50, samples=4).write()
    monkeypatch.setenv("PATH", "")
    assert status(plan, watch=True, as_json=False) == 0
    assert "its search is in round 1" in capsys.readouterr().out
