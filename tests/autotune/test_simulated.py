"""The default strategy on simulated devices, and that their results do not depend on the order."""

from __future__ import annotations

import statistics

import pytest

from tuning.autotune.cost import CostModel
from tuning.autotune.score import Scorer
from tuning.autotune.search import Budget, search
from tuning.autotune.simulated import Surface
from tuning.autotune.strategies import strategy

pytestmark = pytest.mark.unit
SEEDS = range(300, 330)


def regret(seed: int) -> tuple[float, int]:
    """Throughput lost, and trials."""
    surface = Surface(seed)
    scorer = Scorer(capacity=surface.device.capacity)
    model = CostModel(surface.workload, surface.device, surface.space)
    found = search(
        surface.space,
        strategy("predict", model, scorer),
        surface.trial,
        scorer=scorer,
        budget=Budget(seconds=1e9),
    )
    assert found.winner in surface.safe
    lost = 1 - surface.truths[found.winner].tokens_per_second / surface.best
    return lost, len(found.observations)


def test_predict_is_near_the_best_in_few_trials():
    results = [regret(seed) for seed in SEEDS]
    lost = sorted(r for r, _ in results)
    assert statistics.median(lost) <= 0.03
    assert lost[int(0.9 * len(lost))] <= 0.10
    assert statistics.median(n for _, n in results) <= 5


def test_a_seed_is_one_surface():
    one, other = Surface(7), Surface(7)
    assert one.truths == other.truths
    assert str(one) == str(other) != str(Surface(8))
    assert one.best == max(t.tokens_per_second for t in one.safe.values())
