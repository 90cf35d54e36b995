"""Both perplexities against a direct computation on a small random model."""

from __future__ import annotations

import math
import random

import pytest
import torch

from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.evaluation import perplexity
from tuning.evaluation.perplexity import Encoded, measure

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=32, vocab_size=40, num_layer=2, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32, dropout=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    made = build(SHAPE, seed=0, eos_token_id=1, pad_token_id=0)
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(8.0 if weights.dim() > 1 else 1.0)
    return made


@pytest.fixture(scope="module")
def pool() -> list[Encoded]:
    rng = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(40) for _ in range(rng.randint(low, high))]

    return [Encoded(prompt=ids(1, 9), response=ids(1, 12)) for _ in range(23)]


def losses(model, row: Encoded) -> list[float]:
    """Negative log-likelihood of each response token, one sequence at a time."""
    model.eval()
    ids = torch.tensor([row.prompt + row.response])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(row.prompt)
    return [-logs[start + i - 1, token].item() for i, token in enumerate(row.response)]


def test_it_is_what_the_definitions_say(model, pool):
    each = [losses(model, row) for row in pool]
    tokens = sum(map(len, each))
    found = measure(model, pool)
    assert (found.tokens, found.samples) == (tokens, len(pool))
    assert found.token_level == pytest.approx(math.exp(sum(map(sum, each)) / tokens), rel=1e-5)
    mean = sum(math.exp(sum(row) / len(row)) for row in each) / len(pool)
    assert found.sample_mean == pytest.approx(mean, rel=1e-5)
    assert found.token_level != pytest.approx(found.sample_mean, rel=1e-2)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 100])
def test_it_does_not_depend_on_the_batches(model, pool, batch_size):
    whole, found = measure(model, pool), measure(model, pool, batch_size=batch_size)
    assert found.token_level == pytest.approx(whole.token_level, rel=1e-5)
    assert found.sample_mean == pytest.approx(whole.sample_mean, rel=1e-5)
    assert (found.tokens, found.samples) == (whole.tokens, whole.samples)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_parts_of_the_pool_make_the_whole_and_are_called_as_often(model, pool, ranks):
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    found, often = {}, set()
    for rank in range(ranks):
        found |= perplexity.part_of_sums(model, pool, batch_size=5, at=rank, of=ranks)
        often.add(len(calls))
        calls.clear()
    hook.remove()
    assert len(often) == 1
    assert perplexity.from_sums(*perplexity.in_order(found)) == measure(model, pool, batch_size=5)


def test_a_batch_has_no_more_logits_than_fit(model, pool, monkeypatch):
    """A vocabulary of 128,000 makes gigabytes of them."""
    whole, shapes = measure(model, pool), []
    hook = model.register_forward_hook(lambda _m, _a, output: shapes.append(output.logits.shape))
    monkeypatch.setattr(perplexity, "LOGITS", 40 * 50)
    found = measure(model, pool)
    hook.remove()
    assert found.token_level == pytest.approx(whole.token_level, rel=1e-5)
    assert sum(rows for rows, *_ in shapes) == len(pool)
    assert all(rows == 1 or rows * (length + 1) * 40 <= 40 * 50 + rows * 40
               for rows, length, _ in shapes)  # fmt: skip
    assert max(rows for rows, *_ in shapes) > 1


def test_it_does_not_depend_on_the_order(model, pool):
    found = measure(model, pool[::-1], batch_size=5)
    assert found.token_level == pytest.approx(measure(model, pool).token_level, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_it_measures_and_as_before_after(model, pool, training):
    model.train(training)
    first, second = (measure(model, pool) for _ in range(2))
    assert first == second
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_knows_nothing_has_the_size_of_the_vocabulary(pool):
    blank = build(SHAPE, seed=0, eos_token_id=1, pad_token_id=0)
    with torch.no_grad():
        for weights in blank.parameters():
            weights.zero_()
    found = measure(blank, pool)
    assert found.token_level == pytest.approx(40, rel=1e-5)
    assert found.sample_mean == pytest.approx(40, rel=1e-5)
