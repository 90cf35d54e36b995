"""The settings of a search."""

from __future__ import annotations

from dataclasses import dataclass

from tuning.settings import require


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How the best split is searched for."""

    max_runs: int | None = None
    """Most runs to train (default: half of the grid)."""
    batch: int | None = None
    """Runs that a round starts, side by side (default: one a budget, at least 2)."""
    first: float = 0.25
    """Share of the test prompts after which a weak run is stopped; 1: none is stopped early."""

    def __post_init__(self) -> None:
        require(self, "max_runs", self.max_runs is None or self.max_runs >= 1, "at least 1")
        require(self, "batch", self.batch is None or self.batch >= 1, "at least 1")
        require(self, "first", 0 < self.first <= 1, "above 0 and at most 1")
