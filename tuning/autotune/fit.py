"""Fitting a positive quantity that is a sum of known terms, each wrong by an unknown factor.

    y = exp(scale) * sum_k exp(z_k) * term_k * exp(discrepancy) * exp(noise)

The factors have log-normal priors around 1, so that a single observation corrects the prediction
and none leaves it as it was; the discrepancy is a Gaussian process over the candidates (Kennedy and
O'Hagan 2001), so that what is near an observation is better known than what is far. The fit is the
mode of the posterior, its spread Laplace's approximation there. An observation may be a lower bound
(out of memory): its likelihood is the probability of being above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
_ITERATIONS = 50


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is believed of the factors before anything was observed; logs of factors."""

    terms: tuple[float, ...]
    """Standard deviation of the factor of each term."""
    scale: float
    """Standard deviation of the factor of the sum."""
    discrepancy: float
    """Standard deviation of what no factor explains."""
    length: float
    """Distance of candidates over which that is alike, in units of the features."""
    noise: float
    """Standard deviation of the same candidate measured again."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Observations: terms [n, k], features [n, f], logs of values [n], which of them are lower
    bounds [n], and standard deviations of noise beside the prior's [n]."""

    terms: Array
    features: Array
    values: Array
    bounds: NDArray[np.bool_]
    noise: Array

    def without(self, row: int) -> Data:
        """All but one."""
        keep = np.arange(len(self.values)) != row
        return Data(
            terms=self.terms[keep],
            features=self.features[keep],
            values=self.values[keep],
            bounds=self.bounds[keep],
            noise=self.noise[keep],
        )


class PositiveFit:
    """The posterior of the factors and of the discrepancy."""

    def __init__(self, prior: Prior, data: Data) -> None:
        self.prior, self.data = prior, data
        self._sd = np.array([prior.scale, *prior.terms])
        self._exact = ~data.bounds
        self._lower = self._cholesky()
        self._z, self._covariance = self._mode()
        self._residual = self._whitened(self._z) if self._exact.any() else np.zeros(0)

    def predict(self, terms: Array, features: Array) -> tuple[Array, Array]:
        """Log of the value [m] and its standard deviation [m], for terms [m, k], features [m, f].

        The standard deviation is of what would be true, without the noise of measuring it.
        """
        mean, slope = _log_sum(self._z, terms)
        own = np.full(len(terms), self.prior.discrepancy**2)
        if self._exact.any():
            across = self._kernel(features, self.data.features[self._exact])
            half = np.linalg.solve(self._lower, across.T)
            mean = mean + half.T @ self._residual
            slope = slope - half.T @ np.linalg.solve(self._lower, self._slopes())
            own = own - np.einsum("ij,ij->j", half, half)
        variance = np.einsum("ij,jk,ik->i", slope, self._covariance, slope) + own
        return mean, np.sqrt(np.maximum(variance, 1e-12))

    def _kernel(self, left: Array, right: Array) -> Array:
        squares = ((left[:, None, :] - right[None, :, :]) ** 2).sum(-1)
        return self.prior.discrepancy**2 * np.exp(-0.5 * squares / self.prior.length**2)

    def _cholesky(self) -> Array:
        features = self.data.features[self._exact]
        noise = self.prior.noise**2 + self.data.noise[self._exact] ** 2
        return np.linalg.cholesky(self._kernel(features, features) + np.diag(noise))

    def _slopes(self) -> Array:
        return _log_sum(self._z, self.data.terms[self._exact])[1]

    def _whitened(self, z: Array) -> Array:
        """Residuals of the exact observations, uncorrelated and of variance 1."""
        expected, _ = _log_sum(z, self.data.terms[self._exact])
        found: Array = np.linalg.solve(self._lower, self.data.values[self._exact] - expected)
        return found

    def _mode(self) -> tuple[Array, Array]:
        """Levenberg and Marquardt's steps to the mode, and the covariance there."""
        z, damping = np.zeros(len(self._sd)), 1e-3
        residual, slope = self._system(z)
        for _ in range(_ITERATIONS):
            curvature = slope.T @ slope
            step = np.linalg.solve(curvature + damping * np.eye(len(z)), -slope.T @ residual)
            there, slope_there = self._system(z + step)
            if there @ there < residual @ residual:
                z, residual, slope, damping = z + step, there, slope_there, damping / 3
                if np.abs(step).max() < 1e-6:
                    break
            else:
                damping *= 4
        return z, np.linalg.inv(slope.T @ slope)

    def _system(self, z: Array) -> tuple[Array, Array]:
        """Residuals, whose squares sum to minus twice the log posterior, and their slopes in z."""
        parts = [z / self._sd]
        slopes: list[Array] = [np.diag(1 / self._sd)]
        if self._exact.any():
            parts.append(-self._whitened(z))
            slope = _log_sum(z, self.data.terms[self._exact])[1]
            slopes.append(np.linalg.solve(self._lower, slope))
        if self.data.bounds.any():
            expected, slope = _log_sum(z, self.data.terms[self.data.bounds])
            own = math.hypot(self.prior.discrepancy, self.prior.noise)
            spread = np.hypot(own, self.data.noise[self.data.bounds])
            above = (expected - self.data.values[self.data.bounds]) / spread
            residual, change = _censored(above)
            parts.append(residual)
            slopes.append((change / spread)[:, None] * slope)
        return np.concatenate(parts), np.concatenate(slopes)


def _log_sum(z: Array, terms: Array) -> tuple[Array, Array]:
    """Log of the scaled sum [n], and its slopes in z [n, 1 + k]."""
    weighted = terms * np.exp(np.clip(z[1:], -20, 20))
    total = weighted.sum(1)
    slopes = np.concatenate([np.ones((len(terms), 1)), weighted / total[:, None]], axis=1)
    return z[0] + np.log(total), slopes


def _censored(above: Array) -> tuple[Array, Array]:
    """sqrt(-2 log Phi(u)) and its slope in u: the residual of a lower bound, u standard deviations
    below what is expected."""
    values, slopes = [], []
    for u in above.tolist():
        if u < -8:  # Phi has run out of digits; its tail is that of the normal density
            values.append(-u)
            slopes.append(-1.0)
            continue
        phi = 0.5 * math.erfc(-u / math.sqrt(2))
        value = math.sqrt(max(-2 * math.log(phi), 1e-18))
        density = math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
        values.append(value)
        slopes.append(-density / (phi * value))
    return np.array(values), np.array(slopes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """An observation, as Data has many; the value as it is."""

    terms: Array
    features: Array
    value: float
    bound: bool = False
    noise: float = 0.0


def of_rows(rows: Sequence[Row]) -> Data:
    """Data of observations, in their order."""
    n = len(rows)
    return Data(
        terms=np.array([r.terms for r in rows], dtype=float).reshape(n, -1 if n else 0),
        features=np.array([r.features for r in rows], dtype=float).reshape(n, -1 if n else 0),
        values=np.log(np.array([r.value for r in rows], dtype=float)),
        bounds=np.array([r.bound for r in rows], dtype=bool),
        noise=np.array([r.noise for r in rows], dtype=float),
    )
