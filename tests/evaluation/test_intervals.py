"""Intervals: their bounds, their corners, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tuning.evaluation.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    wilson,
)

pytestmark = pytest.mark.unit


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_a_mean_has_two_standard_errors_on_either_side():
    scores = [0.0, 0.25, 0.5, 1.0]
    found = mean_interval(scores)
    error = 1.959964 * np.std(scores, ddof=1) / 2
    assert found.estimate == pytest.approx(0.4375)
    assert found.low == pytest.approx(max(0, 0.4375 - error))
    assert found.high == pytest.approx(0.4375 + error)


@pytest.mark.parametrize("truth", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("samples", [1, 8])
def test_an_interval_covers_the_truth_about_95_times_in_100(truth, samples):
    rng = np.random.default_rng(0)
    scores = rng.binomial(samples, truth, size=(1000, 200)) / samples
    share = np.mean([covers(mean_interval(row), truth) for row in scores])
    assert 0.925 <= share <= 0.975


def test_prompts_are_the_units_not_samples():
    """Answers to one prompt that go together leave the interval as wide as the prompts have it."""
    rng = np.random.default_rng(1)
    scores = rng.binomial(1, 0.5, size=(1000, 100)).astype(float)
    share = np.mean([covers(mean_interval(row), 0.5) for row in scores])
    assert 0.92 <= share <= 0.98


@pytest.mark.parametrize("scores", [[0.02] * 50 + [0.9], [0.98] * 50 + [0.1], [0, 1], [1, 0, 0]])
def test_bounds_stay_within_0_and_1(scores):
    found = mean_interval(scores)
    assert 0 <= found.low <= found.estimate <= found.high <= 1


@pytest.mark.parametrize(("value", "count"), [(0.0, 20), (1.0, 20), (0.5, 20), (1.0, 1), (0.0, 1)])
def test_scores_that_are_all_alike_take_wilsons(value, count):
    found = mean_interval([value] * count)
    assert found == wilson(value, count)
    assert found.high - found.low > 0.1
    assert 0 <= found.low <= value <= found.high <= 1


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.5, 10, 0.2366, 0.7634),
        (0.1, 50, 0.0435, 0.2136),
    ],
)
def test_wilson_has_the_values_of_the_tables(share, trials, low, high):
    found = wilson(share, trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        mean_interval([])
    with pytest.raises(ValueError, match="at least one prompt"):
        paired_difference([], [])


def test_a_paired_difference_is_signed_and_reproducible():
    ours, theirs = [1.0, 1.0, 0.5, 0.0] * 10, [0.0, 0.5, 0.5, 0.0] * 10
    found = paired_difference(ours, theirs)
    assert found.estimate == pytest.approx(0.375)
    assert 0 < found.low < 0.375 < found.high
    assert found == paired_difference(ours, theirs)
    back = paired_difference(theirs, ours)
    assert back.estimate == pytest.approx(-0.375)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.02)


def test_pairing_takes_away_what_prompts_have_in_common():
    rng = np.random.default_rng(2)
    theirs = rng.uniform(0, 0.9, 200)
    ours = theirs + 0.05 + rng.normal(0, 0.02, 200)
    found = paired_difference(ours, theirs)
    assert found.low > 0
    unpaired = mean_interval(ours).low - mean_interval(theirs).high
    assert unpaired < 0


def test_a_difference_that_is_always_the_same_has_no_width():
    assert paired_difference([1.0] * 5, [0.5] * 5) == Interval(estimate=0.5, low=0.5, high=0.5)


def test_a_paired_difference_covers_no_difference():
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(150):
        difficulty = rng.uniform(0, 1, 80)
        ours, theirs = (rng.binomial(8, difficulty) / 8 for _ in range(2))
        shares.append(covers(paired_difference(ours, theirs), 0.0))
    assert 0.88 <= np.mean(shares) <= 0.99


@pytest.mark.parametrize("theirs", [[0.0, 1.0, 0.0], [0.0]])
def test_other_prompts_cannot_be_compared(theirs):
    with pytest.raises(ValueError):
        paired_difference([1.0, 0.0], theirs)


def test_the_mean_of_several_values_a_prompt_is_over_prompts():
    values = [[1, 0, 1], [1], [0, 0], [1, 1, 0, 1]]
    found = ratio_interval([sum(v) for v in values], [len(v) for v in values])
    assert found.estimate == pytest.approx(0.6)
    one_each = [1.0, 0.0, 1.0, 1.0, 0.0]
    assert ratio_interval(one_each, [1] * 5) == mean_interval(one_each)
    assert ratio_interval([3, 2], [3, 2]) == wilson(1.0, 2)
    assert ratio_interval([1] * 50, [2] * 50) == mean_interval([0.5] * 50)
    lengths = ratio_interval([10.0, 14.0], [2, 2])
    assert (lengths.estimate, lengths.low < 6 < lengths.high) == (6.0, True)
    with pytest.raises(ValueError, match="at least one value"):
        ratio_interval([0], [0])


def test_the_interval_of_several_values_a_prompt_covers():
    """Prompts of one to five questions, alike within a prompt; 95% of intervals hold the truth."""
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        counts = draw.integers(1, 6, size=120)
        ease = draw.beta(1.2, 0.8, size=120)
        found = ratio_interval(draw.binomial(counts, ease), counts)
        covered += found.low <= 0.6 <= found.high
    assert 0.92 <= covered / 400 <= 0.98
