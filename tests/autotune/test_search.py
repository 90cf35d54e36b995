"""The loop: outcomes, budgets and resuming, with every strategy; and strategies on their own."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.autotune.small import CAPACITY, SCORER, SPACE, failed, model, ran, searched
from tuning.autotune.bayesian import Bayesian
from tuning.autotune.observation import OUTCOMES, History, Observation
from tuning.autotune.predict import Predict, excess
from tuning.autotune.search import Budget, search
from tuning.autotune.space import Candidate, Space
from tuning.autotune.strategies import STRATEGIES, strategy
from tuning.runs.errors import Interrupted, UserError

pytestmark = pytest.mark.unit
EVERYTHING = Space(target=64, processes=4, nodes=2, method="pretrain", compiles=True)


def honest(candidate: Candidate) -> Observation:
    """Memory and speed as one would expect, without noise."""
    size = candidate.micro_batch or 4
    memory = 0.2 + size * (0.015 if candidate.gradient_checkpointing else 0.06)
    if memory > 1:
        return failed(candidate, "oom")
    mfu = 0.5 * size / (size + 1) / (1.3 if candidate.gradient_checkpointing else 1)
    return ran(candidate, memory=memory, mfu=mfu, speed=1e4 * mfu)


BEST = max((o for c in SPACE.candidates if SCORER.safe(o := honest(c))), key=SCORER.score)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_finds_something_near_the_best(name):
    result = searched(name, honest)
    assert result.winner is not None
    assert honest(result.winner).mfu >= 0.85 * BEST.mfu
    tried = [o.candidate for o in result.observations]
    assert len(set(tried)) == len(tried)
    assert result.why.startswith(f"best: {result.winner}; {len(tried)} trials")


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("outcome", [o for o in OUTCOMES if o != "ok"])
@pytest.mark.parametrize("space", [SPACE, EVERYTHING], ids=["small", "everything"])
def test_nothing_ever_works(name, outcome, space):
    result = searched(name, lambda c: failed(c, outcome), space)
    assert result.winner is None
    assert 1 <= len(result.observations) <= 15
    assert "nothing that was tried is safe to use" in result.why
    assert f"{len(result.observations)} {outcome}" in result.why


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("seed", range(15))
def test_any_outcomes_end_and_nothing_is_tried_twice(name, seed):
    draw = random.Random(seed)

    def trial(candidate: Candidate) -> Observation:
        outcome = draw.choice(OUTCOMES)
        if draw.random() < 0.1:
            raise MemoryError("no more of it")
        if outcome != "ok":
            return failed(candidate, outcome)
        mfu = draw.choice((None, draw.uniform(0.01, 0.9)))
        return ran(candidate, memory=draw.uniform(0.05, 1), mfu=mfu, speed=draw.uniform(1, 1e5))

    result = searched(name, trial, draw.choice((SPACE, EVERYTHING)))
    tried = [o.candidate for o in result.observations]
    assert len(set(tried)) == len(tried) <= 15
    if result.winner is not None:
        won = next(o for o in result.observations if o.candidate == result.winner)
        assert won.ok
        assert won.peak_bytes <= 0.9 * CAPACITY


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_search_that_was_killed_goes_on(tmp_path, name, killed_after):
    straight = searched(name, honest)
    history = History(tmp_path / "history.jsonl")
    calls: list[Candidate] = []

    def trial(candidate: Candidate) -> Observation:
        if len(calls) == killed_after:
            raise Interrupted("stopped")
        calls.append(candidate)
        return honest(candidate)

    if len(straight.observations) > killed_after:
        with pytest.raises(Interrupted):
            searched(name, trial, history=history)
        assert [o.candidate for o in history.read()] == calls

    def rest(candidate: Candidate) -> Observation:
        assert candidate not in calls
        return honest(candidate)

    resumed = searched(name, rest, history=history)
    assert resumed.winner == straight.winner
    assert [o.candidate for o in resumed.observations] == [
        o.candidate for o in straight.observations
    ]


def test_a_history_of_another_space_is_passed_over(tmp_path):
    history = History(tmp_path / "history.jsonl")
    history.append(ran(Candidate(micro_batch=31), memory=0.1, mfu=0.9))
    result = searched("predict", honest, history=history)
    assert Candidate(micro_batch=31) not in [o.candidate for o in result.observations]


def test_what_a_trial_raises_is_a_crash():
    def trial(candidate: Candidate) -> Observation:
        raise ValueError("no such thing")

    result = searched("grid", trial, most=2)
    assert [o.outcome for o in result.observations] == ["crash", "crash"]
    assert result.observations[0].note == "ValueError: no such thing"


def test_impossible_numbers_and_another_candidates_result_are_garbage():
    wrong = [
        lambda c: replace(ran(c, memory=0.1, mfu=0.5), mfu=7.0),
        lambda c: ran(Candidate(micro_batch=31), memory=0.1, mfu=0.5),
    ]
    for trial in wrong:
        result = searched("grid", trial, most=1)
        assert [o.outcome for o in result.observations] == ["garbage"]
        assert result.winner is None


def test_the_budget_bounds_trials_and_time():
    assert searched("grid", honest, most=4).ended == "max iterations"
    now = [0.0]

    def trial(candidate: Candidate) -> Observation:
        now[0] += 40.0
        return honest(candidate)

    budget = Budget(seconds=100.0, clock=lambda: now[0])
    found = strategy("grid", model(), SCORER)
    result = search(SPACE, found, trial, scorer=SCORER, budget=budget)
    assert (result.ended, len(result.observations), result.seconds) == ("out of time", 2, 80.0)
    assert result.winner is not None
    assert [o.seconds for o in result.observations] == [40.0, 40.0]
    spent = Budget(seconds=0.0)
    nothing = search(SPACE, found, trial, scorer=SCORER, budget=spent)
    assert (nothing.winner, nothing.observations) == (None, ())


def test_progress_is_told_of_every_trial():
    told: list[tuple[int, int]] = []
    result = searched("grid", honest, most=3, progress=lambda o, n, most: told.append((n, most)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(result.observations) == 3


def test_predict_stops_early_and_says_how_far_it_was_off():
    result = searched("predict", honest)
    assert len(result.observations) <= 5
    assert result.ended == "converged"
    assert "memory off by" in (result.prediction_error or "")


def test_predict_goes_on_while_nothing_is_safe():
    """Only the smallest three candidates fit, far less than is to be expected."""

    def trial(candidate: Candidate) -> Observation:
        fits = candidate.gradient_checkpointing and candidate.micro_batch <= 1
        return ran(candidate, memory=0.8, mfu=0.1) if fits else failed(candidate, "oom")

    assert searched("predict", trial).winner == Candidate(micro_batch=1)


def test_predict_leaves_a_switch_that_crashes():
    def trial(candidate: Candidate) -> Observation:
        return failed(candidate, "crash") if candidate.use_compile else honest(candidate)

    result = searched("predict", trial, EVERYTHING)
    assert result.winner is not None
    assert sum(o.outcome == "crash" for o in result.observations) <= 2


def test_predict_heeds_beta():
    """With memory dear, a candidate with room wins over a faster one without."""
    dear = replace(SCORER, beta=1e4)
    found = Predict(model(), dear)
    budget = Budget(seconds=1e6)
    result = search(SPACE, found, honest, scorer=dear, budget=budget)
    assert result.winner is not None
    assert honest(result.winner).peak_bytes <= 0.86 * CAPACITY


def test_the_excess_of_a_log_normal():
    draw = random.Random(0)
    drawn = [2.0 * draw.lognormvariate(0, 0.3) for _ in range(50_000)]
    expected = sum(max(0.0, x - 2.2) for x in drawn) / len(drawn)
    assert excess(2.0, 0.3, 2.2) == pytest.approx(expected, rel=0.05)
    assert excess(2.0, 0.01, -1.0) == pytest.approx(3.0, rel=0.01)
    assert excess(0.0, 0.3, 0.1) == 0.0, "speed may count for nothing"


def test_bayesian_takes_earlier_observations_for_initial_points():
    earlier = [honest(c) for c in SPACE.candidates]
    warm = Bayesian(SPACE, SCORER, earlier=earlier)
    tried = [honest(warm.ask())]
    for _ in range(2):
        warm.tell(tried[-1])
        tried.append(honest(warm.ask()))
    best = max(o.mfu for o in tried if SCORER.safe(o))
    assert best >= 0.95 * BEST.mfu


def test_bayesian_starts_with_three_to_five_points_far_apart():
    for space, wanted in ((SPACE, 3), (EVERYTHING, 5)):
        found = Bayesian(space, SCORER)
        assert len(set(found._initial)) == wanted


def test_an_unknown_strategy_is_refused():
    with pytest.raises(UserError, match="unknown strategy 'predicts'"):
        strategy("predicts", model(), SCORER)
