"""The decisions of a search on simulated score surfaces: caps, early stops, ends, and that nothing
but the results and the rounds so far decides.
"""

from __future__ import annotations

import math
import statistics

import pytest

from tuning.search.arms import Arm, Measure, Result
from tuning.search.config import SearchConfig
from tuning.search.rounds import (
    EXTEND,
    SCREEN,
    START,
    STOP,
    Round,
    Search,
    Step,
    actions,
    decide,
)
from tuning.search.simulated import Surface, grid

pytestmark = pytest.mark.unit

FOLLOWS = {None: {START, SCREEN}, SCREEN: {EXTEND, STOP}}


class Trial:
    """A search on a surface, carried out."""

    def __init__(self, arms: tuple[Arm, ...], surface: Surface, **config: float) -> None:
        self.search = Search(arms=arms, config=SearchConfig(**config))
        self.surface = surface
        self.rounds: list[Round] = []
        self.results: dict[Arm, Result] = {}
        self.seen: list[dict[Arm, Result]] = []
        """The results that each round was decided from."""

    def run(self) -> Trial:
        while not self.rounds or not self.rounds[-1].end:
            self.step()
        return self

    def step(self) -> None:
        self.seen.append(dict(self.results))
        made = decide(self.search, self.rounds, self.results)
        first = math.ceil(self.search.config.first * self.surface.prompts)
        for step in made.work:
            arm = next(arm for arm in self.search.arms if arm.key == step.arm)
            part = first if step.action == SCREEN else None
            self.results[arm] = self.surface.result(arm, first=part)
        self.rounds.append(made)

    @property
    def regret(self) -> float:
        """Of the first contest, in points."""
        truth = {arm.key: self.surface.truth(arm) for arm in self.search.arms}
        best = self.rounds[-1].beliefs[0]
        own = [a.key for a in self.search.arms if a.contest == (best.model, best.size)]
        return 100 * (max(truth[key] for key in own) - truth[best.best])


@pytest.fixture(scope="module")
def trial() -> Trial:
    """Two budgets and two methods."""
    return Trial(grid((300, 3000), ("dpo", "kto")), Surface(3, prompts=200)).run()


def test_a_search_keeps_its_cap_and_runs_no_arm_twice(trial: Trial):
    done: dict[str, str] = {}
    for each in trial.rounds:
        for step in each.steps:
            assert step.action in FOLLOWS.get(done.get(step.arm), set()), step
            done[step.arm] = step.action
        starts = [step for step in each.steps if step.action in (START, SCREEN)]
        assert len(starts) <= trial.search.batch
    assert len(done) <= trial.search.max_arms == len(trial.search.arms) // 2
    assert SCREEN not in done.values(), "a run is left without a verdict"
    assert all(step.why for each in trial.rounds for step in each.steps)


def test_decisions_follow_from_results_and_rounds_alone(trial: Trial):
    for number, (made, seen) in enumerate(zip(trial.rounds, trial.seen, strict=True)):
        backwards = dict(reversed(seen.items()))
        assert decide(trial.search, trial.rounds[:number], backwards) == made


def test_half_of_the_grid_finds_a_split_that_is_as_good():
    trials = [Trial(grid(), Surface(seed, prompts=500)).run() for seed in range(8)]
    assert max(len(actions(trial.rounds)) for trial in trials) <= 3
    assert statistics.median(trial.regret for trial in trials) <= 1.0


def arm(n_sft: int, size: int = 1000) -> Arm:
    return Arm(model="m", size=size, n_sft=n_sft, method="dpo" if n_sft < size else "")


def measure(score: float, prompts: int = 1000) -> Measure:
    return Measure(prompts=prompts, score=score, variance=score * (1 - score) / prompts)


def begun(*steps: tuple[Arm, str]) -> list[Round]:
    return [Round(steps=tuple(Step(arm=a.key, action=how, why="") for a, how in steps))]


def test_a_weak_run_is_stopped_and_one_like_the_best_goes_on():
    search = Search(arms=tuple(map(arm, (0, 400, 500, 1000))), config=SearchConfig())
    rounds = begun((arm(500), START), (arm(0), SCREEN), (arm(400), SCREEN))
    results = {
        arm(500): Result(full=measure(0.6)),
        arm(0): Result(first=measure(0.2, 250)),
        arm(400): Result(first=measure(0.61, 250)),
    }
    made = {step.arm: step for step in decide(search, rounds, results).steps}
    assert made[arm(0).key].action == STOP
    assert "0.200 on the first 250 prompts: better than m 1000 500 dpo" in made[arm(0).key].why
    assert made[arm(400).key].action == EXTEND


def test_few_prompts_stop_nobody_that_many_would():
    search = Search(arms=tuple(map(arm, (0, 500, 1000))), config=SearchConfig())
    rounds = begun((arm(500), START), (arm(1000), SCREEN))

    def verdict(prompts: int) -> str:
        first = Result(first=measure(0.5, prompts))
        results = {arm(500): Result(full=measure(0.57, 4000)), arm(1000): first}
        steps = decide(search, rounds, results).steps
        return next(step.action for step in steps if step.arm == arm(1000).key)

    assert (verdict(10), verdict(4000)) == (EXTEND, STOP)


def test_a_search_ends_when_the_best_is_known_within_its_interval():
    arms = tuple(map(arm, (0, 250, 500, 750, 1000)))
    search = Search(arms=arms, config=SearchConfig(max_runs=5))
    done = begun(*((one, START) for one in arms[1:]))
    results = {one: Result(full=measure(0.5, 20)) for one in arms[1:]}
    made = decide(search, done, results)
    assert made.beliefs[0].settled and not made.work
    assert made.end == "the best split of every budget is known within its interval"
    assert made.beliefs[0].within > 0.1


def test_a_failed_run_is_not_chosen_again_and_ends_nothing():
    search = Search(arms=grid(), config=SearchConfig(max_runs=6))
    rounds = begun((arm(500), START), (arm(0), START))
    made = decide(search, rounds, {arm(500): Result(full=measure(0.5)), arm(0): Result()})
    assert made.work and arm(0).key not in {step.arm for step in made.steps}
    assert decide(search, rounds, {}).end == "no run that was started has a result"


@pytest.mark.parametrize("first", [1.0, 0.25])
def test_everything_is_run_where_the_cap_allows_it_and_nothing_is_settled(first):
    surface = Surface(1, prompts=4000, samples=1)
    found = Trial(grid((1000,), ("dpo",)), surface, max_runs=7, batch=3, first=first).run()
    assert len(actions(found.rounds)) <= 7
    assert found.rounds[-1].end
    assert (SCREEN in {s.action for r in found.rounds for s in r.steps}) is (first < 1)


def test_seeds_of_an_arm_count_as_runs():
    search = Search(arms=grid(), config=SearchConfig(max_runs=7, batch=3), runs_of_arm=3)
    assert (search.max_arms, search.batch) == (2, 1)
