"""The surrogate: a Gaussian process of pass@1 over SFT ratio, budget, method and base model.

The noise of each point is the binomial one of its prompts, and that of training beside it. With the
few points of a search a single best fit of the kernel is worth little, so kernels of a fixed grid
are weighted by their likelihood (scikit-learn's GaussianProcessRegressor, no optimizer), and what
follows is a fixed number of joint draws of all scores from their mixture. Nothing is random: equal
measures give equal draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuning.search.arms import Arm, Measure

Array = np.ndarray[Any, np.dtype[np.float64]]
DRAWS = 1024
SEED = 20250
FAR = 1e4
"""A length scale along which nothing changes."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One setting of the process. Amplitudes and noise are in units of pass@1, lengths of the ratio
    in square roots of the share, of the budget in doublings.
    """

    amplitude: float
    ratio: float
    size: float
    method: float
    noise: float
    """Standard deviation between trainings."""
    level: float = 0.3
    """Amplitude of what all ways to spend a budget have in common."""


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
    import warnings

    seen = [arm for arm in arms if arm in measures]
    places = features(arms)
    at = places[[arms.index(arm) for arm in seen]]
    scores = np.array([measures[arm].score for arm in seen])
    variance = np.array([measures[arm].variance for arm in seen])
    centre = float(np.average(scores, weights=1 / (variance + 1e-3)))
    fits, likelihoods = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kernel in kernels(arms):
            process = _process(kernel, places.shape[1], _columns(arms), variance)
            process.fit(at, scores - centre)
            fits.append(process)
            likelihoods.append(process.log_marginal_likelihood_value_)
        weights = np.exp(np.array(likelihoods) - max(likelihoods))
        draws = _draws(fits, weights / weights.sum(), places)
    return Posterior(arms=tuple(arms), draws=np.clip(draws + centre, 0.0, 1.0))


def _draws(fits: Sequence[Any], weights: Array, places: Array) -> Array:
    """Draws from the mixture: of each process as many as its weight asks for."""
    ends = np.round(np.cumsum(weights) * DRAWS).astype(int)
    counts = np.diff(np.concatenate([[0], ends]))
    normal = np.random.default_rng(SEED).standard_normal((DRAWS, len(places)))
    parts, first = [], 0
    for process, count in zip(fits, counts, strict=True):
        if count:
            mean, covariance = process.predict(places, return_cov=True)
            parts.append(mean + normal[first : first + count] @ _root(covariance))
            first += count
    return np.concatenate(parts)


def _root(covariance: Array) -> Array:
    """A matrix R with R'R = covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    found: Array = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return found


def kernels(arms: Sequence[Arm]) -> list[Kernel]:
    """The grid of settings; what all arms share is not varied."""
    sizes = (2.0, 6.0) if len({arm.size for arm in arms}) > 1 else (2.0,)
    methods = (0.7, 2.5) if len({arm.method for arm in arms if arm.method}) > 1 else (1.0,)
    axes = itertools.product((0.04, 0.1, 0.25), (0.35, 0.8), sizes, methods, (0.004, 0.015))
    return [
        Kernel(amplitude=amplitude, ratio=ratio, size=size, method=method, noise=noise)
        for amplitude, ratio, size, method, noise in axes
    ]


def features(arms: Sequence[Arm]) -> Array:
    """A row an arm: the root of its share of SFT, in which the cold start at 0 lies apart; the
    logarithm of its budget; its method, of less weight the less it has to tune; its model.
    """
    methods, models = _columns(arms)
    return np.array(
        [
            [
                arm.ratio**0.5,
                np.log2(arm.size),
                *((1 - arm.ratio) ** 0.5 * (arm.method == name) for name in methods),
                *(float(arm.model == name) for name in models),
            ]
            for arm in arms
        ]
    )


def _columns(arms: Sequence[Arm]) -> tuple[list[str], list[str]]:
    """The methods and models that have a column; a single one needs none."""
    methods = sorted({arm.method for arm in arms} - {""})
    models = sorted({arm.model for arm in arms})
    return (methods if len(methods) > 1 else [], models if len(models) > 1 else [])


def covariance(kernel: Kernel, arms: Sequence[Arm]) -> Array:
    """The prior covariance of all arms."""
    places = features(arms)
    made: Array = _kernel(kernel, places.shape[1], _columns(arms))(places)
    return made


def _kernel(kernel: Kernel, width: int, columns: tuple[list[str], list[str]]) -> Any:
    """The level of a budget, and what the ratio and the method change of it."""
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    methods, models = columns
    own = [kernel.ratio, kernel.size, *(kernel.method for _ in methods), *(1.5 for _ in models)]
    level = [FAR, 2 * kernel.size, *(FAR for _ in methods), *(1.5 for _ in models)]
    assert len(own) == width
    return ConstantKernel(kernel.level**2) * Matern(level, nu=2.5) + ConstantKernel(
        kernel.amplitude**2
    ) * Matern(own, nu=2.5)


def _process(
    kernel: Kernel, width: int, columns: tuple[list[str], list[str]], variance: Array
) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(
        kernel=_kernel(kernel, width, columns),
        alpha=variance + kernel.noise**2 + 1e-10,
        optimizer=None,
    )
