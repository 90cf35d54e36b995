"""How sure a score is: 95% intervals over prompts, and paired comparisons on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution."""
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95% interval."""

    estimate: float
    low: float
    high: float


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean over prompts of scores in [0, 1], with 1.96 standard errors on either side.

    Prompts are the independent units, not samples (Miller 2024, "Adding Error Bars to Evals",
    section 2). Where all prompts score alike the standard error says nothing and Wilson's interval
    is taken.
    """
    scores = np.asarray(values, dtype=float)
    if scores.size == 0:
        raise ValueError("an interval needs at least one prompt")
    mean = float(scores.mean())
    if scores.size == 1 or np.ptp(scores) == 0:
        return wilson(mean, scores.size)
    error = Z * float(scores.std(ddof=1)) / np.sqrt(scores.size)
    return Interval(estimate=mean, low=max(0.0, mean - error), high=min(1.0, mean + error))


def ratio_interval(
    sums: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray
) -> Interval:
    """The mean of all values, some to each prompt, with 1.96 standard errors on either side.

    The values of a prompt depend on each other, so prompts are the units: the ratio estimator of
    cluster sampling (Cochran 1977, "Sampling Techniques", section 6.4). With one value a prompt it
    is `mean_interval`. The interval of shares stays within [0, 1].
    """
    found, asked = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if not asked.sum():
        raise ValueError("a mean needs at least one value")
    mean, prompts = float(found.sum() / asked.sum()), found.size
    shares = bool((found >= 0).all() and (found <= asked).all())
    left = (found - mean * asked) / asked.mean()
    if shares and (prompts == 1 or np.allclose(left, 0)):
        return wilson(mean, prompts)
    error = ratio_error(found, asked)
    least, most = (0.0, 1.0) if shares else (-np.inf, np.inf)
    return Interval(estimate=mean, low=max(least, mean - error), high=min(most, mean + error))


def normal_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of any numbers, with 1.96 standard errors on either side; of one, the number."""
    numbers = np.asarray(values, dtype=float)
    mean = float(numbers.mean())
    error = ratio_error(numbers, np.ones_like(numbers))
    return Interval(estimate=mean, low=mean - error, high=mean + error)


def ratio_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """1.96 standard errors of the ratio of two sums over independent units (Cochran 1977, 6.4)."""
    units = sums.size
    left = (sums - sums.sum() / counts.sum() * counts) / counts.mean()
    return Z * float(np.sqrt((left**2).sum() / max(units - 1, 1) / units))


def wilson(share: float, trials: int) -> Interval:
    """Wilson's score interval of a binomial share (Wilson 1927)."""
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2)) / (1 + Z**2 / trials)
    return Interval(
        estimate=share,
        low=max(0.0, min(share, float(centre - half))),
        high=min(1.0, max(share, float(centre + half))),
    )


def paired_difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """Mean of ours - theirs over the same prompts, with a percentile bootstrap over prompts."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} prompts cannot be compared with {len(theirs)}")
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    if differences.size == 0:
        raise ValueError("a comparison needs at least one prompt")
    draw = np.random.default_rng(seed).integers(
        0, differences.size, size=(RESAMPLES, differences.size)
    )
    means = differences[draw].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(estimate=float(differences.mean()), low=float(low), high=float(high))
