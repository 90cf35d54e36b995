"""What to try next. Every strategy has one interface: `ask` for a candidate, try it, `tell` what
came of it; `ask` gives None when there is nothing more to learn. Nothing is asked twice, whatever
its outcome was, so that every search ends.
"""

from __future__ import annotations

from typing import Protocol

from tuning.autotune.observation import Observation
from tuning.autotune.space import Candidate

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
