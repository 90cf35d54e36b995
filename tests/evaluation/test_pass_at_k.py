"""pass@k against counting every choice of k samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tuning.evaluation.pass_at_k import pass_at_k, per_prompt

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("samples", range(1, 9))
def test_it_is_the_share_of_choices_with_a_right_one(samples):
    for correct in range(samples + 1):
        right = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            choices = [any(choice) for choice in combinations(right, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(choices) / len(choices))


@pytest.mark.parametrize(("rate", "k"), [(0.05, 1), (0.05, 8), (0.3, 4), (0.9, 2)])
def test_its_mean_over_drawn_answers_is_the_chance_of_one_in_k(rate, k):
    """1 - (1 - p)^k for an answer that is right with chance p: unbiased, whatever n is."""
    prompts, samples = 40_000, 10
    correct = np.random.default_rng(1).binomial(samples, rate, prompts)
    found = per_prompt(correct.tolist(), samples, k)
    error = found.std() / np.sqrt(prompts)
    assert abs(found.mean() - (1 - (1 - rate) ** k)) < 4 * error


def test_it_holds_for_many_samples():
    assert pass_at_k(1000, 1, 100) == pytest.approx(0.1)
    assert pass_at_k(10_000, 0, 10_000) == 0.0
    assert pass_at_k(10_000, 1, 10_000) == 1.0


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(4, 2, 0), (4, 2, 5), (4, 5, 1), (4, -1, 1), (0, 0, 1)]
)
def test_what_cannot_be_is_refused(samples, correct, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {correct} right among {samples}"):
        pass_at_k(samples, correct, k)


def test_every_prompt_has_its_own():
    found = per_prompt([0, 1, 4], samples=4, k=2)
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0])
    assert per_prompt([], 4, 2).shape == (0,)
