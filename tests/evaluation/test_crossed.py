"""Intervals over prompts and seeds: what the parts are, how often they cover, Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest

from tuning.evaluation.crossed import crossed, holm, parts
from tuning.evaluation.intervals import mean_interval

pytestmark = pytest.mark.unit

EASE, INTERACTION = 2.0, 0.5
"""Standard deviations in logits: of prompts, and of what a seed makes of a prompt."""


def shares(logits):
    return 1 / (1 + np.exp(-logits))


class World:
    """Scores by the model that the intervals assume, in logits, so that scores have a floor."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def truth(self, level, between):
        spread = np.sqrt(EASE**2 + between**2 + INTERACTION**2)
        return shares(level + spread * self.rng.normal(size=100_000)).mean()

    def tables(self, levels, between, seeds, prompts, samples=4):
        """One for each way, of the same prompts; shape (seeds, prompts)."""
        ease = self.rng.normal(0, EASE, prompts)
        for level, sd in zip(levels, between, strict=True):
            seed = self.rng.normal(0, sd, (seeds, 1))
            own = self.rng.normal(0, INTERACTION, (seeds, prompts))
            chance = shares(level + ease + seed + own)
            yield self.rng.binomial(samples, chance) / samples


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    "between", [(0.0,), (0.2,), (0.6,), (0.1, 0.4)], ids=["none", "little", "much", "unequal"]
)
def test_intervals_cover_other_prompts_and_other_seeds(seeds, between):
    world, ways = World(seeds), 12
    levels, sds = np.linspace(-3, 2, ways), (between * ways)[:ways]
    truths = [world.truth(*each) for each in zip(levels, sds, strict=True)]
    hits, apart = [], []
    for _ in range(40):
        tables = list(world.tables(levels, sds, seeds, 150))
        found = crossed(tables)
        hits += [e.low <= t <= e.high for e, t in zip(found, truths, strict=True)]
        differences = crossed([table - tables[0] for table in tables[1:]])
        apart += [
            e.low <= t - truths[0] <= e.high for e, t in zip(differences, truths[1:], strict=True)
        ]
    assert np.mean(hits) >= 0.925
    assert np.mean(apart) >= 0.925


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_table_alone_is_covered_with_its_own_variance(seeds):
    world, hits = World(1), []
    truth = world.truth(0, 0.5)
    for _ in range(400):
        (found,) = crossed(list(world.tables([0], [0.5], seeds, 150)))
        hits.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.995


def test_where_seeds_do_not_differ_intervals_are_little_wider_than_those_of_prompts():
    world = World(9)
    tables = list(world.tables(np.linspace(-3, 2, 12), [0.0] * 12, 3, 150))
    wide = [found.high - found.low for found in crossed(tables)]
    alone = [mean_interval(table.mean(axis=0)) for table in tables]
    assert sum(wide) < 1.25 * sum(found.high - found.low for found in alone)


def test_prompts_alone_are_too_sure_where_seeds_differ():
    world, hits = World(2), []
    truth = world.truth(0, 0.6)
    for _ in range(300):
        (table,) = world.tables([0], [0.6], 3, 150)
        pooled = mean_interval(table.mean(axis=0))
        hits.append(pooled.low <= truth <= pooled.high)
    assert np.mean(hits) < 0.75


@pytest.mark.parametrize("seeds", [1, 3])
def test_nothing_is_found_where_nothing_is(seeds):
    world, first, corrected, rounds = World(3), 0, 0, 150
    for _ in range(rounds):
        tables = list(world.tables([0.0] * 9, [0.3 * (seeds > 1)] * 9, seeds, 100))
        p = [found.p for found in crossed([table - tables[0] for table in tables[1:]])]
        first, corrected = first + (min(p) < 0.05), corrected + (min(holm(p)) < 0.05)
    assert corrected <= 0.08 * rounds
    assert first >= corrected


def test_the_parts_are_the_variances_of_the_margins():
    table = np.array([[0.0, 0.5, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0]])
    found = parts(table)
    assert found.mean == pytest.approx(table.mean())
    assert found.between == pytest.approx(table.mean(axis=1).var(ddof=1))
    assert found.prompt_variance == pytest.approx(table.mean(axis=0).var(ddof=1) / 4)
    assert found.within == pytest.approx(np.mean(table.var(axis=1, ddof=1)) / 4)
    (whole,) = crossed([table])
    assert whole.prompt_error == pytest.approx(found.prompt_variance**0.5)
    assert whole.seed_error == pytest.approx((found.between / 2) ** 0.5)


def test_one_seed_has_the_error_of_its_prompts_alone():
    scores = np.random.default_rng(4).random((1, 400))
    (found,) = crossed([scores])
    of_prompts = mean_interval(scores[0])
    assert found.seed_error is None
    assert found.low == pytest.approx(of_prompts.low, abs=1e-3)
    assert found.high == pytest.approx(of_prompts.high, abs=1e-3)


def test_the_level_of_an_interval_that_ends_at_zero_is_its_p_value():
    rng = np.random.default_rng(5)
    for seeds in (1, 3):
        table = rng.normal(0.0, 1.0, (seeds, 60))
        (there,) = crossed([table])
        shifted = table - there.low
        (found,) = crossed([shifted])
        assert found.low == pytest.approx(0, abs=1e-9) and found.p == pytest.approx(0.05, abs=1e-3)


def test_tables_without_any_variance_are_certain_and_those_beside_them_are_not():
    same, zero = np.full((3, 5), 0.5), np.zeros((3, 5))
    assert [(e.low, e.high, e.p) for e in crossed([same, zero])] == [(0.5, 0.5, 0), (0, 0, 1)]
    others = list(World(6).tables([0, 0.5, 1], [0.3] * 3, 3, 5))
    among = crossed([zero, *others])
    assert among[0].high > 0 and among[0].p == 1


def test_an_empty_table_is_an_error():
    with pytest.raises(ValueError, match="at least one prompt"):
        crossed([np.zeros((2, 0))])


def test_holm_multiplies_by_what_is_left_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
