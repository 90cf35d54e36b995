"""Perplexity and implicit rewards from likelihoods, against sums by hand and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tuning.evaluation.before_after import held_out_part
from tuning.evaluation.likelihood import (
    changed,
    described,
    implicit_reward,
    perplexity,
    perplexity_change,
)

pytestmark = pytest.mark.unit


def completions(nll, tokens):
    return {"completion": {"nll": nll, "tokens": tokens}}


def pairs(chosen, rejected, lengths=((5, 5, 5), (5, 5, 5))):
    return {
        "chosen": {"nll": chosen, "tokens": list(lengths[0])},
        "rejected": {"nll": rejected, "tokens": list(lengths[1])},
    }


def test_perplexity_is_that_of_all_tokens_together() -> None:
    found = perplexity(completions([2.0, 12.0], [4, 6]))
    assert found["estimate"] == pytest.approx(math.exp(1.4), abs=1e-6)
    assert (found["rows"], found["tokens"]) == (2, 10)
    assert found["low"] < found["estimate"] < found["high"]


def test_the_intervals_of_perplexity_and_of_its_change_cover() -> None:
    """Rows of different lengths, whose loss a token differs from row to row."""
    rng, covered = np.random.default_rng(3), {"perplexity": 0, "change": 0}
    for _ in range(400):
        tokens = rng.integers(10, 60, 64)
        mean = rng.normal(1.0, 0.3, 64)
        better = mean - rng.normal(0.2, 0.1, 64)
        before, after = (completions(list(m * tokens), list(tokens)) for m in (mean, better))
        value, factor = perplexity(before), perplexity_change(before, after)
        covered["perplexity"] += value["low"] <= math.exp(1.0) <= value["high"]
        covered["change"] += factor["low"] <= math.exp(-0.2) <= factor["high"]
    assert all(0.91 <= hits / 400 <= 0.98 for hits in covered.values()), covered


def test_the_change_is_the_ratio_of_both_perplexities() -> None:
    before, after = completions([8.0, 9.0], [4, 6]), completions([4.0, 6.0], [4, 6])
    ratio = perplexity(after)["estimate"] / perplexity(before)["estimate"]
    assert perplexity_change(before, after)["estimate"] == pytest.approx(ratio, abs=1e-6)


def test_the_implicit_reward_is_measured_against_the_reference() -> None:
    """The first pair is learnt, though its rejected answer stays the likelier one; the second is
    unlearnt; in the third nothing moved."""
    reference = pairs([10.0, 3.0, 7.0], [6.0, 4.0, 7.0])
    policy = pairs([8.0, 4.0, 7.0], [7.0, 4.0, 7.0])
    found = implicit_reward(policy, reference, 0.5)
    assert found["estimate"] == 0.5
    assert found["margin"]["estimate"] == pytest.approx(0.5 * (3.0 - 1.0 + 0.0) / 3, abs=1e-6)
    assert found["pairs"] == 3
    other = implicit_reward(policy, reference, 1.0)
    assert other["estimate"] == found["estimate"]
    assert other["margin"]["estimate"] == pytest.approx(2 * found["margin"]["estimate"], abs=2e-6)


def test_a_model_that_is_its_own_reference_prefers_nothing() -> None:
    same = pairs([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    found = implicit_reward(same, same, 0.1)
    assert found["estimate"] == 0.5 and found["margin"]["estimate"] == 0


def test_length_is_told_apart_from_preference() -> None:
    """A policy that makes every token likelier by as much prefers the longer answer."""
    chosen, rejected = (8, 4, 5), (4, 8, 5)
    reference = pairs([8.0, 4.0, 5.0], [4.0, 8.0, 5.0], (chosen, rejected))
    policy = pairs([4.0, 2.0, 2.5], [2.0, 4.0, 2.5], (chosen, rejected))
    found = implicit_reward(policy, reference, 1.0)
    assert found["longer_preferred"] == 1.0
    assert found["chosen_longer"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["estimate"] == 0.5
    even = implicit_reward(pairs([1.0] * 3, [2.0] * 3), pairs([2.0] * 3, [2.0] * 3), 1.0)
    assert even["estimate"] == 1.0 and even["longer_preferred"] is None


@pytest.mark.parametrize(
    ("pool", "trained", "wanted", "part"),
    [(100, 50, 20, (80, 20)), (100, 90, 20, (90, 10)), (100, 100, 20, (100, 0)),
     (10, 4, 20, (4, 6))],
)  # fmt: skip
def test_what_is_held_out_is_not_trained_on(pool, trained, wanted, part) -> None:
    assert held_out_part(pool, trained, wanted) == part
    assert part[0] >= trained and part[0] + part[1] == pool


def test_what_was_not_measured_is_none() -> None:
    assert described({}, {}, 1.0, None) == {"score": None, "perplexity": None, "reward": None}
    assert changed({}, {}, None, None) == {"score": None, "perplexity": None}


def test_the_score_changes_on_the_same_prompts() -> None:
    def scores(correct):
        return {"prompts": len(correct), "samples": 2, "correct": correct, "pass_at_k": {"1": {}}}

    found = changed({}, {}, scores([0, 1, 2, 0]), scores([2, 1, 2, 0]))["score"]
    assert found["estimate"] == 0.25 and found["low"] <= 0.25 <= found["high"]
    assert changed({}, {}, scores([0, 1]), scores([1, 1, 1]))["score"] is None
