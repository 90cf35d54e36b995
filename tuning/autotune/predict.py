"""The default strategy: the cost model names the candidate that should be best, a trial confirms or
corrects it, and the search ends once no other is expected to be worth its trial.

What is worth a trial is the expected improvement (Jones et al. 1998) of the score, whose speed is
log-normal, times the probability that memory suffices (Gardner et al. 2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuning.autotune.cost import CostModel, Prediction
from tuning.autotune.observation import Observation
from tuning.autotune.score import LIMIT, Scorer, fastest_of
from tuning.autotune.space import Candidate

MIN_TRIALS, MAX_TRIALS = 3, 5
WORTH = 0.005
"""Expected gain, as a fraction of the best speed, below which a candidate is not tried."""
FAITH = 0.25
"""Trials that a switch is taken to have survived before any; few, since a switch that crashes once
mostly does so again."""
LIKELY = 0.05
"""Least probability of enough memory for a trial, once something safe is known."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The best safe trial: every candidate computes the same step, so that its speed is this one's
    times the ratio of their steps, however MFU is counted."""

    score: float
    speed: float
    """MFU, or tokens a second over the fastest seen."""
    step: float
    """Seconds of a step."""

    @classmethod
    def of(cls, best: Observation, scorer: Scorer, fastest: float | None) -> Known:
        """Of an observation that is safe."""
        relative = (best.tokens_per_second or 0.0) / (fastest or 1.0)
        return cls(
            score=scorer.score(best, fastest),
            speed=relative if best.mfu is None else best.mfu,
            step=best.step or 1.0,
        )


class Predict:
    """See above. More than MAX_TRIALS only as long as nothing safe was found."""

    def __init__(self, model: CostModel, scorer: Scorer, max_trials: int = MAX_TRIALS) -> None:
        self.model, self.scorer, self.max_trials = model, scorer, max_trials
        self._seen: dict[Candidate, Observation] = {}

    def tell(self, observation: Observation) -> None:
        """Correct the cost model."""
        self._seen[observation.candidate] = observation
        self.model.observe(observation)

    def error(self) -> str | None:
        """Leave-one-out errors of the cost model."""
        return str(self.model.errors())

    def ask(self) -> Candidate | None:
        """The candidate whose trial is expected to gain most."""
        best = self.scorer.best(self._seen.values())
        left = {c: p for c, p in self.model.predictions().items() if c not in self._seen}
        if best is None:
            return self._first(left)
        if len(self._seen) >= self.max_trials:
            return None
        known = Known.of(best, self.scorer, fastest_of(self._seen.values()))
        gains = {c: self._gain(c, p, known) for c, p in left.items()}
        found = max(gains, key=lambda c: gains[c], default=None)
        worth = WORTH if len(self._seen) >= MIN_TRIALS else WORTH / 50
        if found is None or gains[found] < worth * self.scorer.alpha * known.speed:
            return None
        return found

    def _first(self, left: dict[Candidate, Prediction]) -> Candidate | None:
        """While nothing safe is known: the fastest of those that fit; else the likeliest to."""
        chance = {c: self._enough(p) * self._reliable(c) for c, p in left.items()}
        fitting = [c for c, p in left.items() if p.fits and chance[c] >= 0.5]
        if fitting:
            return min(fitting, key=lambda c: left[c].step_seconds / chance[c])
        possible = [c for c, p in left.items() if not p.hopeless]
        if not possible and len(self._seen) < self.max_trials:
            return min(left, key=lambda c: left[c].peak_bytes, default=None)
        return max(possible, key=lambda c: chance[c], default=None)

    def _gain(self, candidate: Candidate, p: Prediction, best: Known) -> float:
        """Expected improvement of the best score, times the probability of being safe."""
        enough = self._enough(p)
        if enough < LIKELY:
            return 0.0
        penalty = self.scorer.penalty(p.peak_bytes / self.scorer.capacity)
        gain = excess(
            self.scorer.alpha * best.speed * best.step / p.step_seconds,
            p.step_error / p.step_seconds,
            best.score + self.scorer.beta * penalty,
        )
        return gain * enough * self._reliable(candidate)

    def _enough(self, p: Prediction) -> float:
        """The probability that peak memory is within the limit."""
        room = math.log(LIMIT * self.scorer.capacity / p.peak_bytes)
        return normal(room / (p.peak_error / p.peak_bytes))

    def _reliable(self, candidate: Candidate) -> float:
        """How likely it is not to crash, hang or give garbage, by what became of the trials that
        share a switch with it; by the switch that did worst."""
        chances = [1.0]
        for switch in suspects(candidate):
            alike = [o for c, o in self._seen.items() if switch in suspects(c)]
            failed = sum(o.outcome in ("crash", "hang", "garbage") for o in alike)
            chances.append((FAITH + len(alike) - failed) / (FAITH + len(alike)))
        return min(chances)


def normal(x: float) -> float:
    """The distribution function of the standard normal."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def excess(middle: float, spread: float, floor: float) -> float:
    """E[max(0, S - floor)] of a log-normal S with median `middle` and log deviation `spread`."""
    mean = middle * math.exp(0.5 * spread**2)
    if floor <= 0:
        return mean - floor
    if middle <= 0:
        return 0.0
    d = math.log(middle / floor) / spread
    return mean * normal(d + spread) - floor * normal(d)


def suspects(c: Candidate) -> set[str]:
    """What is at fault if it fails: what few use, else the rest."""
    found = {"compile"} if c.use_compile else set()
    found |= {f"sep {c.sep_size}"} if c.sep_size > 1 else set()
    found |= {c.sharding} if c.sharding == "hybrid_shard" else set()
    checkpointing = "checkpointing" if c.gradient_checkpointing else "no checkpointing"
    return found or {c.sharding, checkpointing}
