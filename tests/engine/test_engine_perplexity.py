"""The perplexity of packed rows is that of padded batches."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.engine import small
from tuning.engine import model, parallel, ranks
from tuning.engine.batches import Batches
from tuning.engine.perplexity import PoolPerplexity, rows_of
from tuning.engine.samples import IGNORED
from tuning.evaluation.perplexity import Encoded, measure

pytestmark = pytest.mark.unit


def made():
    """A model with dropout that is surer of itself than a fresh one."""
    network = model.build(small.SHAPES["dropout"], seed=0, eos_token_id=1, pad_token_id=0)
    with torch.no_grad():
        for weights in network.parameters():
            weights.mul_(4.0 if weights.dim() > 1 else 1.0)
    return network


@pytest.fixture(scope="module")
def pool() -> list[Encoded]:
    rng = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(96) for _ in range(rng.randint(low, high))]

    return [Encoded(prompt=ids(1, 9), response=ids(1, 20)) for _ in range(23)]


def test_labels_are_on_the_responses(pool):
    rows = rows_of(pool)
    assert rows.lengths.tolist() == [len(x.prompt) + len(x.response) for x in pool]
    assert rows.loss_tokens.tolist() == [len(x.response) for x in pool]
    first = rows[0]
    start = len(pool[0].prompt) - 1
    assert (first.labels[:start] == IGNORED).all()
    assert first.labels[start:-1].tolist() == pool[0].response


@pytest.mark.parametrize("budget", [32, 64, 8192])
def test_both_definitions_are_those_of_measure(pool, budget):
    wanted = measure(made(), pool)
    layout = ranks.layout()
    spread = parallel.spread(made(), layout)
    training = Batches(
        samples=small.rows(), global_batch=5, seed=3, layout=layout, max_tokens=budget,
        quadratic=0.01,
    )  # fmt: skip
    spread.model.train()
    found = PoolPerplexity(pool, training, spread, "fp32")
    once, twice = found.measure(), found.measure()
    assert spread.model.training
    assert once == twice, "dropout is off"
    assert once.token_level == pytest.approx(wanted.token_level, rel=1e-5)
    assert once.sample_mean == pytest.approx(wanted.sample_mean, rel=1e-5)
    assert (once.tokens, once.samples) == (wanted.tokens, wanted.samples)


def test_it_does_not_depend_on_what_is_trained(pool):
    layout = ranks.layout()
    spread = parallel.spread(made(), layout)
    training = Batches(samples=small.rows(), global_batch=5, seed=3, layout=layout, max_tokens=64)
    other = replace(training, seed=4, global_batch=2, _orders={})
    one, two = (PoolPerplexity(pool, b, spread, "fp32").measure() for b in (training, other))
    assert one == two
