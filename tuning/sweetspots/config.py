"""Settings of sweetspots: the perplexity rules, how often to measure, and early stopping."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tuning.runs.errors import UserError
from tuning.settings import require
from tuning.sweetspots.rules import Patience, Rule, Threshold


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """The perplexity at which SFT saves sweetspots, how it is measured, and early stopping."""

    perplexity_thresholds: tuple[float, ...] = ()
    """Save a sweetspot when the validation perplexity falls to each of these."""
    perplexity_patience: tuple[str, ...] = ()
    """Also save one at a plateau, N:DELTA: it fell by less than DELTA in each of N evaluations."""
    eval_steps: int = 10
    """Optimizer steps between two measurements."""
    validation_size: int = 256
    """Examples of the validation pool to measure on; all if the pool is smaller."""
    early_stop: bool = True
    """Stop training when the last rule has fired."""

    def __post_init__(self) -> None:
        check_thresholds(self.perplexity_thresholds)
        patience = [parse_patience(rule) for rule in self.perplexity_patience]
        _no_repeats("perplexity_patience", [f"{n}:{decrease}" for n, decrease in patience])
        for name in ("eval_steps", "validation_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")

    @property
    def rules(self) -> list[Rule]:
        """The rules in the order given: thresholds, then patience."""
        thresholds = [Threshold(value=value) for value in self.perplexity_thresholds]
        patience = map(parse_patience, self.perplexity_patience)
        return [*thresholds, *(Patience(evaluations=n, change=change) for n, change in patience)]


def parse_patience(rule: str) -> tuple[int, float]:
    """Parse `2:0.02` into (evaluations, smallest decrease); UserError for anything else."""
    match = re.fullmatch(r"(\d+):(\d*\.?\d+(?:[eE][-+]?\d+)?)", rule)
    if not match or int(match[1]) < 1 or float(match[2]) <= 0:
        raise UserError(
            f"perplexity_patience is '{rule}'; write EVALUATIONS:DECREASE, both above zero, "
            "for example 2:0.02."
        )
    return int(match[1]), float(match[2])


def check_thresholds(thresholds: Iterable[float]) -> None:
    """Raise UserError unless all thresholds are above 1, finite and distinct."""
    values = list(thresholds)
    for value in values:
        if not 1 < value < float("inf"):
            raise UserError(
                f"perplexity threshold {value} cannot be reached; thresholds are numbers above 1.0."
            )
    _no_repeats("perplexity_thresholds", values)


def _no_repeats(name: str, values: Iterable[Any]) -> None:
    seen = list(values)
    for value in seen:
        if seen.count(value) > 1:
            raise UserError(f"{name} names {value} more than once.")
