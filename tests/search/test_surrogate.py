"""The surrogate knows the noise of its points, and the same measures give the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from tuning.search.arms import Arm, Measure
from tuning.search.surrogate import features, posterior

pytestmark = pytest.mark.unit

ARMS = tuple(Arm(model="m", size=1000, n_sft=n, method="dpo") for n in (0, 100, 250, 500, 750))


def measure(score: float, prompts: int) -> Measure:
    return Measure(prompts=prompts, score=score, variance=score * (1 - score) / prompts)


def test_a_certain_point_is_believed_and_a_noisy_one_follows_its_neighbours():
    seen = {arm: measure(0.5, 2000) for arm in ARMS}
    odd = ARMS[3]
    sure = posterior(ARMS, seen | {odd: measure(0.6, 20000)}).mean(odd)
    unsure = posterior(ARMS, seen | {odd: measure(0.6, 20)}).mean(odd)
    assert sure > 0.56 and unsure < 0.53


def test_what_is_far_from_every_point_is_uncertain():
    found = posterior(ARMS, {ARMS[3]: measure(0.5, 1000), ARMS[4]: measure(0.52, 1000)})
    spread = [float(found.of(arm).std()) for arm in ARMS]
    assert spread[0] > 2 * spread[3]
    assert found.draws.min() >= 0 and found.draws.max() <= 1


def test_equal_measures_give_equal_draws():
    seen = {ARMS[0]: measure(0.1, 200), ARMS[4]: measure(0.4, 200)}
    again = dict(reversed(seen.items()))
    assert np.array_equal(posterior(ARMS, seen).draws, posterior(ARMS, again).draws)


def test_methods_differ_less_the_less_they_have_to_tune():
    arms = [
        Arm(model="m", size=100, n_sft=n, method=method) for n in (0, 90) for method in ("a", "b")
    ]
    places = features([*arms, Arm(model="m", size=100, n_sft=100)])["method"]
    apart = np.linalg.norm(places[0] - places[1]), np.linalg.norm(places[2] - places[3])
    assert apart[0] > 2 * apart[1]


@pytest.mark.parametrize(("samples", "right"), [(1, 60), (4, 160)])
def test_the_variance_is_the_binomial_one_over_prompts(samples, right):
    rng = np.random.default_rng(0)
    correct = np.zeros(200)
    for place in rng.permutation(200 * samples)[: right * 1]:
        correct[place % 200] += 1
    found = Measure.of(correct.tolist(), samples)
    assert found.score == pytest.approx(right / 200 / samples)
    expected = float((correct / samples).var(ddof=1)) / 200
    assert found.variance == pytest.approx(expected)
    if samples == 1:
        assert found.variance == pytest.approx(0.3 * 0.7 / 199)


def test_a_score_of_nothing_is_not_certain():
    assert Measure.of([0.0] * 50, 4).half_width > 0.005
    assert Measure.of([0.0] * 5000, 4).half_width < 0.001
