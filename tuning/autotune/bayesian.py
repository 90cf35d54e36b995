"""Bayesian optimization: a Gaussian process of the score over the candidates (scikit-optimize,
Matern 5/2), and the lower confidence bound of its negative (kappa 2.0), evaluated at every
candidate that was not tried, so that no point comes twice.

Memory enters as a penalty: above the limit, or out of memory, a score is below every safe one.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence

import numpy as np

from tuning.autotune.fit import Array
from tuning.autotune.heuristic import size_of
from tuning.autotune.observation import Observation
from tuning.autotune.score import Scorer, fastest_of
from tuning.autotune.space import Candidate, Space

KAPPA = 2.0
FEWEST, MOST = 3, 5
"""Initial points: a fourth of the candidates, within these."""
UNSAFE = 1.0
"""Taken off the score of what ran above the limit; what did not run has no other score."""


class Bayesian:
    """See above. Ends when every candidate was tried; the search bounds the number of trials."""

    def __init__(
        self,
        space: Space,
        scorer: Scorer,
        *,
        candidates: Sequence[Candidate] | None = None,
        seed: int = 0,
        earlier: Sequence[Observation] = (),
    ) -> None:
        """
        Args:
            space: What can be tried.
            scorer: What is best.
            candidates: Those of the space that may be tried (default: all).
            seed: Of the initial points and of the Gaussian process.
            earlier: Observations on similar hardware, which take the place of initial points; their
                memory is judged by this device's capacity. What was tried there is tried again.
        """
        self.scorer, self.seed = scorer, seed
        self.candidates = list(space.candidates if candidates is None else candidates)
        self.earlier = [o for o in earlier if o.outcome in ("ok", "oom")]
        self._seen: dict[Candidate, Observation] = {}
        wanted = max(FEWEST, min(MOST, len(self.candidates) // 4))
        wanted = max(1, wanted - len(self.earlier))
        self._initial = spread_out(self.candidates, wanted, random.Random(seed))

    def tell(self, observation: Observation) -> None:
        """Add a point."""
        self._seen[observation.candidate] = observation

    def error(self) -> str | None:
        """The process predicts scores, not memory or time."""
        return None

    def ask(self) -> Candidate | None:
        """An initial point, then the candidate of the lowest bound."""
        left = [c for c in self.candidates if c not in self._seen]
        initial = [c for c in self._initial if c not in self._seen]
        if initial and len(self._seen) < len(self._initial):
            return initial[0]
        points = [*self.earlier, *self._seen.values()]
        if not left or not points:
            return left[0] if left else None
        bounds = self._bounds(points, left)
        return left[int(np.argmin(bounds))]

    def _bounds(self, points: Sequence[Observation], left: Sequence[Candidate]) -> Array:
        """The lower confidence bound of minus the score of each candidate."""
        from skopt.acquisition import gaussian_lcb
        from skopt.learning import GaussianProcessRegressor
        from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern

        places = np.array([features(o.candidate) for o in points])
        process = GaussianProcessRegressor(
            kernel=ConstantKernel(1.0, (0.01, 100.0))
            * Matern(np.ones(places.shape[1]), (0.1, 20.0), nu=2.5),
            alpha=1e-4,
            normalize_y=True,
            noise="gaussian",
            n_restarts_optimizer=1,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process.fit(places, -np.array(self._scores(points)))
            wanted = np.array([features(c) for c in left])
            found: Array = gaussian_lcb(wanted, process, kappa=KAPPA)
        return found

    def _scores(self, points: Sequence[Observation]) -> list[float]:
        """Scores with the penalty; the speed of earlier ones is of the same scale, as MFU or over
        the fastest of their own device."""
        ours, theirs = fastest_of(self._seen.values()), fastest_of(self.earlier)
        scores = []
        for o in points:
            memory = self.scorer.memory(o)
            if not o.ok or memory is None:
                scores.append(-UNSAFE)
                continue
            fastest = ours if o.candidate in self._seen and o in self._seen.values() else theirs
            unsafe = 0.0 if self.scorer.safe(o) else UNSAFE
            scores.append(self.scorer.score(o, fastest) - unsafe)
        return scores


def features(candidate: Candidate) -> tuple[float, ...]:
    """A candidate as numbers: sizes by their logarithm, so that a doubling is 1 everywhere."""
    return (
        math.log2(size_of(candidate) or 1),
        2.0 * candidate.gradient_checkpointing,
        2.0 * ("none", "hybrid_shard", "full_shard").index(candidate.sharding),
        2.0 * candidate.use_compile,
        math.log2(candidate.sep_size),
    )


def spread_out(
    candidates: Sequence[Candidate], wanted: int, draw: random.Random
) -> list[Candidate]:
    """`wanted` candidates far from each other: one at random, then always the farthest."""
    if not candidates:
        return []
    found = [draw.choice(list(candidates))]
    while len(found) < min(wanted, len(candidates)):
        found.append(
            max(
                (c for c in candidates if c not in found),
                key=lambda c: min(math.dist(features(c), features(f)) for f in found),
            )
        )
    return found
