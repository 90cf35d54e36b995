"""When SFT reaches a sweetspot: threshold and patience rules as plain objects, with no model and no
trainer in sight.

Whoever trains calls `observe()` with each measurement and saves a checkpoint for every rule that it
returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tuning.runs.identity import number, patience_label, threshold_label


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Fires when the perplexity is at or below `value`."""

    value: float
    kind = "perplexity"

    @property
    def label(self) -> str:
        """`ppl-2.0`"""
        return threshold_label(self.value)

    def met(self, history: list[float]) -> bool:
        """Whether the newest of the measurements meets the rule."""
        return history[-1] <= self.value


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Fires when the perplexity fell by less than `decrease` in each of the last `evaluations`."""

    evaluations: int
    decrease: float
    kind = "perplexity_patience"

    @property
    def label(self) -> str:
        """`ppl-2@0.02`"""
        return patience_label(self.evaluations, self.decrease)

    @property
    def value(self) -> str:
        """As metadata have it: `2@0.02`."""
        return f"{self.evaluations}@{number(self.decrease)}"

    def met(self, history: list[float]) -> bool:
        """Whether the last measurements meet the rule."""
        recent = history[-self.evaluations - 1 :]
        if len(recent) <= self.evaluations:
            return False
        return all(a - b < self.decrease for a, b in pairwise(recent))


Rule = Threshold | Patience


class SweetspotRules:
    """The rules of one run and how far they are; each fires at most once."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self.history: list[float] = []
        self.fired: dict[str, int] = {}
        self.met_by_base: dict[str, float] = {}

    def observe(self, step: int, perplexity: float) -> list[Rule]:
        """Take in the measurement after `step` optimizer steps; the rules that fire with it.

        A rule that the model meets before the first step fires never.
        """
        self.history.append(perplexity)
        met = [rule for rule in self.open if rule.met(self.history)]
        if step == 0:
            self.met_by_base |= {rule.label: perplexity for rule in met}
            return []
        self.fired |= {rule.label: step for rule in met}
        return met

    @property
    def open(self) -> list[Rule]:
        """The rules that may still fire."""
        closed = self.fired.keys() | self.met_by_base.keys()
        return [rule for rule in self.rules if rule.label not in closed]

    @property
    def finished(self) -> bool:
        """Whether the last rule has fired. Rules that the base meets give nothing to stop for."""
        return bool(self.fired) and not self.open

    @property
    def best(self) -> float | None:
        """The lowest perplexity so far."""
        return min(self.history, default=None)

    def outcome(self) -> dict[str, dict[str, Any]]:
        """For each label: reached, met_by_base or unreached, with what belongs to it."""
        told: dict[str, dict[str, Any]] = {}
        for rule in self.rules:
            label = rule.label
            if label in self.fired:
                told[label] = {"state": "reached", "step": self.fired[label]}
            elif label in self.met_by_base:
                told[label] = {"state": "met_by_base", "perplexity": self.met_by_base[label]}
            else:
                told[label] = {"state": "unreached", "best": self.best}
        return told

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry."""
        return {
            "history": self.history,
            "fired": self.fired,
            "met_by_base": self.met_by_base,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.history = list(state["history"])
        self.fired = dict(state["fired"])
        self.met_by_base = dict(state["met_by_base"])
