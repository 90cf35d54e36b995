"""How sure a score is when several seeds were trained: two errors, over prompts and over seeds.

The same prompts are given to every seed, so a score is the mean of a table of seeds by prompts, and
its error has two parts (crossed random effects; Cornfield and Tukey 1956, "Average values of mean
squares in factorials"):

    over prompts   the variance of the prompts' means over all seeds, by the number of prompts
    over seeds     the variance of the seeds' means, by the number of seeds

Both hold the noise of sampled answers, so their sum errs on the wide side. Two to five seeds say
little of their own variance; the variances of many tables are therefore drawn towards their common
value, as far as they agree with each other, and gain its degrees of freedom (Smyth 2004, "Linear
models and empirical Bayes methods", section 4). Each part has its own quantile of Student's t, and
the half width is the root of the sum of squares. With one seed there is no error over seeds: such
an interval holds for that seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, polygamma, stdtr, stdtrit

from tuning.evaluation.intervals import Interval

LEVEL = 0.95
FEWEST = 3
"""Tables with several seeds, below which each keeps its own variance."""
_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Crossed(Interval):
    """A mean with its 95% interval and where its error comes from."""

    prompt_error: float
    """Standard error over prompts."""
    seed_error: float | None
    """Standard error over seeds; None with one seed, where it is unknown."""
    p: float
    """Two-sided p-value of a mean of zero."""
    seeds: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The variance components of a table of seeds by prompts."""

    mean: float
    seeds: int
    prompts: int
    prompt_variance: float
    """Variance of the mean that prompts cause."""
    between: float
    """Variance of the seeds' means; 0 with one seed."""
    noise: float
    """The part of `between` that prompts and sampled answers explain: with other prompts and
    answers, seeds that are equal would differ by as much.
    """
    within: float
    """Variance over prompts of the mean of a single seed."""


def parts(table: np.ndarray) -> Parts:
    """The variance components of scores or differences, shape (seeds, prompts)."""
    seeds, prompts = table.shape
    if not table.size:
        raise ValueError("an interval needs at least one prompt and one seed")
    mean, by_seed, by_prompt = table.mean(), table.mean(axis=1), table.mean(axis=0)
    several, most = seeds > 1, max(prompts - 1, 1)
    left = table - by_seed[:, None] - by_prompt[None] + mean
    residual = float((left**2).sum()) / (max(seeds - 1, 1) * most)
    spread = float(((by_prompt - mean) ** 2).sum()) / most
    return Parts(
        mean=float(mean),
        seeds=seeds,
        prompts=prompts,
        prompt_variance=spread / prompts,
        between=float(by_seed.var(ddof=1)) if several else 0.0,
        noise=residual / prompts if several else 0.0,
        within=float(((table - by_seed[:, None]) ** 2).sum()) / (seeds * most * prompts),
    )


def crossed(tables: Sequence[np.ndarray]) -> list[Crossed]:
    """The mean of every table with its interval; the tables share what they say about seeds.

    A table has scores or differences of the same prompts, shape (seeds, prompts). ValueError for an
    empty one.
    """
    found = [parts(np.asarray(table, dtype=float)) for table in tables]
    return [
        _interval(each, variance, df)
        for each, (variance, df) in zip(found, _moderated(found), strict=True)
    ]


def _interval(p: Parts, variance: float, df: float) -> Crossed:
    over_seeds = variance / p.seeds if p.seeds > 1 else 0.0
    least = max(p.prompts - 1, 1)

    def half(tail: float) -> float:
        terms = [(p.prompt_variance, least), (over_seeds, df)]
        total = sum(float(stdtrit(d, 1 - tail)) ** 2 * v for v, d in terms if v > 0)
        return total**0.5

    width = half((1 - LEVEL) / 2)
    return Crossed(
        estimate=p.mean,
        low=p.mean - width,
        high=p.mean + width,
        prompt_error=p.prompt_variance**0.5,
        seed_error=over_seeds**0.5 if p.seeds > 1 else None,
        p=_p_value(p, over_seeds, least, df),
        seeds=p.seeds,
        prompts=p.prompts,
    )


def _p_value(p: Parts, over_seeds: float, least: int, df: float) -> float:
    """The level at which the interval just reaches zero, by bisection of the quantile."""
    size = abs(p.mean)
    if p.prompt_variance + over_seeds <= 0:
        return float(size == 0)
    if not over_seeds:
        return float(2 * stdtr(least, -size / p.prompt_variance**0.5))
    low, high = -700.0, float(np.log(0.5))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tail = np.exp(middle)
        reach = stdtrit(least, tail) ** 2 * p.prompt_variance + stdtrit(df, tail) ** 2 * over_seeds
        low, high = (middle, high) if reach > size**2 else (low, middle)
    return float(min(1.0, 2 * np.exp(high)))


def _moderated(found: Sequence[Parts]) -> list[tuple[float, float]]:
    """Variance between seeds and its degrees of freedom, for every table."""
    several = [p for p in found if p.seeds > 1 and p.between > 0]
    if len(several) < FEWEST:
        return [(p.between, max(p.seeds - 1.0, 1.0)) for p in found]
    prior, strength = _prior(
        np.array([p.between for p in several]), np.array([p.seeds - 1.0 for p in several])
    )
    most = sum(p.seeds - 1.0 for p in several)
    made = []
    for p in found:
        own = max(p.seeds - 1.0, 1.0)
        share = 1.0 if np.isinf(strength) else strength / (strength + own)
        made.append((share * prior + (1 - share) * p.between, min(strength + own, most)))
    return made


def _prior(variances: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """The common variance, and how many degrees of freedom it is worth: infinitely many where the
    variances differ by no more than chance. By the moments of their logarithms (Smyth 2004, 6.2).
    """
    logs = np.log(variances) - digamma(df / 2) + np.log(df / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, df / 2).mean())
    if excess <= 0:
        return float(np.average(variances, weights=df)), np.inf
    strength = 2 * _inverse_trigamma(excess)
    prior = np.exp(logs.mean() + digamma(strength / 2) - np.log(strength / 2))
    return float(prior), float(strength)


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        change = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += change
        if -change / x < 1e-8:
            break
    return x


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order (Holm 1979): the chance that any of
    the true hypotheses is rejected stays below the level.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = floor
    return corrected
