"""What to try next. Every strategy has one interface: `ask` for a candidate, try it, `tell` what
came of it; `ask` gives None when there is nothing more to learn. Nothing is asked twice, whatever
its outcome was, so that every search ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tuning.autotune.bayesian import Bayesian
from tuning.autotune.cost import CostModel
from tuning.autotune.heuristic import TARGET_MFU, Heuristic
from tuning.autotune.observation import Observation
from tuning.autotune.predict import Predict
from tuning.autotune.score import Scorer
from tuning.autotune.space import Candidate
from tuning.runs.errors import choose

STRATEGIES = ("predict", "heuristic", "bayesian", "grid")


class Strategy(Protocol):
    """Proposes candidates; knows only what it was told."""

    def ask(self) -> Candidate | None:
        """What to try next; the same again until it is told of. None: converged."""
        ...

    def tell(self, observation: Observation) -> None:
        """Learn from a trial, also one that was not asked for (of an earlier search)."""
        ...

    def error(self) -> str | None:
        """How far the predictions were off, in words; None without a cost model."""
        ...


class Grid:
    """Every candidate, in the order of the space; for reference."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = tuple(candidates)
        self._seen: set[Candidate] = set()

    def tell(self, observation: Observation) -> None:
        """Tick a candidate off."""
        self._seen.add(observation.candidate)

    def error(self) -> str | None:
        """Nothing is predicted."""
        return None

    def ask(self) -> Candidate | None:
        """The first that was not tried."""
        return next((c for c in self.candidates if c not in self._seen), None)


def strategy(
    name: str,
    model: CostModel,
    scorer: Scorer,
    *,
    target_mfu: float = TARGET_MFU,
    seed: int = 0,
    earlier: Sequence[Observation] = (),
) -> Strategy:
    """A strategy over the space of a cost model.

    Args:
        name: One of STRATEGIES; UserError for any other.
        model: Predicts; what it calls hopeless is left out of `bayesian` and `grid`. Give each
            strategy its own, since it learns; `CostModel.warm` is for a neighbour's trials.
        scorer: What is best.
        target_mfu: That `heuristic` wants to reach.
        seed: Of what `bayesian` draws.
        earlier: Observations on similar hardware, for `bayesian`.
    """
    choose("strategy", name, STRATEGIES)
    if name == "predict":
        return Predict(model, scorer)
    if name == "heuristic":
        return Heuristic(model.space, scorer, target_mfu)
    possible = [c for c, p in model.predictions().items() if not p.hopeless]
    if name == "grid":
        return Grid(possible)
    return Bayesian(model.space, scorer, candidates=possible, seed=seed, earlier=earlier)
