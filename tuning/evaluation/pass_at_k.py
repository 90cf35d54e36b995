"""pass@k: the chance that at least one of k answers is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimator 1 - C(n-c, k) / C(n, k) for one prompt (Chen et al. 2021, eq. 1).

    n `samples`, of which c are `correct`; 1 <= k <= n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} right among {samples}")
    if samples - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def per_prompt_ranked(first_right: Sequence[int | None], k: int) -> np.ndarray:
    """Whether one of the k best answers to every prompt is right; shape (prompts,). `first_right`
    is the rank of the best right one, from 0, or None.
    """
    return np.array([float(rank is not None and rank < k) for rank in first_right])


def per_prompt(correct: Sequence[int], samples: int, k: int) -> np.ndarray:
    """pass@k of every prompt; shape (prompts,)."""
    return np.array([pass_at_k(samples, count, k) for count in correct])


def first_attempts(scores: Mapping[str, Any]) -> list[float]:
    """pass@1 of every prompt, from the content of scores.json."""
    ranked = scores.get("first_right")
    if ranked is not None:
        return [float(rank == 0) for rank in ranked]
    return [count / scores["samples"] for count in scores["correct"]]
