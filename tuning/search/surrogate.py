"""The surrogate: a Gaussian process of pass@1 over SFT ratio, budget, method and base model.

The noise of each point is the binomial one of its prompts, and that of training beside it. With the
few points of a search a single best fit of the kernel is worth little, so kernels of a fixed grid
are weighted by their likelihood, and what follows is a fixed number of joint draws of all scores
from their mixture (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning",
algorithm 2.1). Nothing is random: equal measures give equal draws.

Dozens of fixed kernels over at most some hundred arms are linear algebra of a few lines, which take
milliseconds and no import.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tuning.search.arms import Arm, Measure

Array = np.ndarray[Any, np.dtype[np.float64]]
DRAWS = 1024
SEED = 20250
COLD = 0.05
"""The share of SFT that cures most of a cold start (Raghavendra et al. 2025)."""
JITTER = 1e-7
"""Added to variances, so that covariances are positive: 0.03 points."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One setting of the process. Amplitudes and noise are in units of pass@1, lengths of the ratio
    in square roots of the share, of the budget in doublings.
    """

    amplitude: float
    """Of what the ratio and the method change."""
    ratio: float
    size: float
    method: float
    noise: float
    """Standard deviation between trainings."""
    level: float = 0.3
    """Amplitude of what all ways to spend a budget have in common."""
    model: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A kernel on all arms."""

    kernel: Kernel
    mean: Array
    covariance: Array


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Joint draws of the true scores of all arms."""

    arms: tuple[Arm, ...]
    draws: Array
    """draws x arms."""

    def of(self, arm: Arm) -> Array:
        """The draws of one arm."""
        found: Array = self.draws[:, self.arms.index(arm)]
        return found

    def mean(self, arm: Arm) -> float:
        """Its expected score."""
        return float(self.of(arm).mean())


def posterior(arms: Sequence[Arm], measures: Mapping[Arm, Measure]) -> Posterior:
    """What the scores of all arms may be, after at least one measure."""
    seen = [at for at, arm in enumerate(arms) if arm in measures]
    scores = np.array([measures[arms[at]].score for at in seen])
    variance = np.array([measures[arms[at]].variance for at in seen])
    centre = float(np.average(scores, weights=1 / (variance + 1e-3)))
    priors = _priors(tuple(arms))
    likelihoods = np.array([_fit(p, seen, scores - centre, variance)[0] for p in priors])
    weights = np.exp(likelihoods - likelihoods.max())
    ends = np.round(np.cumsum(weights / weights.sum()) * DRAWS).astype(int)
    normal = np.random.default_rng(SEED).standard_normal((DRAWS, len(arms)))
    first = 0
    draws: Array = np.empty(normal.shape)
    for prior, end in zip(priors, ends, strict=True):
        if end > first:  # of each kernel as many draws as its weight asks for
            _, mean, covariance = _fit(prior, seen, scores - centre, variance)
            draws[first:end] = mean + normal[first:end] @ _root(covariance)
            first = end
    return Posterior(arms=tuple(arms), draws=np.clip(draws + centre, 0.0, 1.0))


def prior_draws(kernel: Kernel, arms: Sequence[Arm]) -> Posterior:
    """Draws of the scores of all arms before anything is measured, around 0."""
    made = on_arms(kernel, arms)
    normal = np.random.default_rng(SEED).standard_normal((DRAWS, len(arms)))
    return Posterior(arms=tuple(arms), draws=made.mean + normal @ _root(made.covariance))


def _fit(
    prior: Prior, seen: Sequence[int], scores: Array, variance: Array
) -> tuple[float, Array, Array]:
    """The logarithm of the likelihood of some scores, and the mean and the covariance of all."""
    noise = np.diag(variance + prior.kernel.noise**2 + JITTER)
    noisy = prior.covariance[np.ix_(seen, seen)] + noise
    root = np.linalg.cholesky(noisy)
    apart = np.linalg.solve(root, scores - prior.mean[seen])
    across = np.linalg.solve(root, prior.covariance[seen])
    likelihood = -0.5 * float(apart @ apart) - float(np.log(np.diag(root)).sum())
    return likelihood, prior.mean + apart @ across, prior.covariance - across.T @ across


def _root(covariance: Array) -> Array:
    """The matrix R with R'R = covariance; unlike eigenvectors it is the same on every machine."""
    root = np.linalg.cholesky(covariance + JITTER * np.eye(len(covariance)))
    return np.asarray(root.T, dtype=np.float64)


@lru_cache(maxsize=4)
def _priors(arms: tuple[Arm, ...]) -> list[Prior]:
    return [on_arms(kernel, arms) for kernel in kernels(arms)]


def kernels(arms: Sequence[Arm]) -> list[Kernel]:
    """The grid of settings; what all arms share is not varied."""
    sizes = (2.0, 6.0) if len({arm.size for arm in arms}) > 1 else (2.0,)
    methods = (0.7, 2.5) if len({arm.method for arm in arms if arm.method}) > 1 else (1.0,)
    axes = itertools.product((0.04, 0.1, 0.25), (0.35, 0.8), sizes, methods, (0.004, 0.015))
    return [
        Kernel(amplitude=amplitude, ratio=ratio, size=size, method=method, noise=noise)
        for amplitude, ratio, size, method, noise in axes
    ]


def on_arms(kernel: Kernel, arms: Sequence[Arm]) -> Prior:
    """The prior of some arms: the level of a budget, which is smooth in its logarithm, and what the
    ratio and the method change of it. Nothing is expected of a ratio but that preference tuning
    with next to no SFT starts cold: one amplitude less at 0.
    """
    places = features(arms)
    lengths = {"ratio": kernel.ratio, "size": kernel.size, "method": kernel.method}
    own = _matern(places, lengths | {"model": kernel.model})
    level = _matern(places, {"size": 2 * kernel.size, "model": kernel.model})
    cold = [np.exp(-arm.ratio / COLD) * bool(arm.method) for arm in arms]
    return Prior(
        kernel=kernel,
        mean=-kernel.amplitude * np.array(cold),
        covariance=kernel.level**2 * level + kernel.amplitude**2 * own,
    )


def features(arms: Sequence[Arm]) -> dict[str, Array]:
    """Columns of places, a row an arm: the root of the share of SFT, in which the cold start at 0
    lies apart; the logarithm of the budget; the method, which weighs the less, the less it has to
    tune; the model.
    """
    methods = sorted({arm.method for arm in arms} - {""})
    models = sorted({arm.model for arm in arms})
    return {
        "ratio": np.array([[arm.ratio**0.5] for arm in arms]),
        "size": np.array([[np.log2(arm.size)] for arm in arms]),
        "method": np.array(
            [[(1 - arm.ratio) ** 0.5 * (arm.method == name) for name in methods] for arm in arms]
        ),
        "model": np.array([[float(arm.model == name) for name in models] for arm in arms]),
    }


def _matern(places: Mapping[str, Array], lengths: Mapping[str, float]) -> Array:
    """The Matern covariance of smoothness 5/2, with a length for each kind of column."""
    at = np.concatenate([places[name] / length for name, length in lengths.items()], axis=1)
    apart = np.sqrt(5 * ((at[:, None] - at[None]) ** 2).sum(axis=-1))
    found: Array = (1 + apart + apart**2 / 3) * np.exp(-apart)
    return found
