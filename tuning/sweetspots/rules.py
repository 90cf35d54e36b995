"""When SFT reaches a sweetspot: threshold and patience rules as values, without model or trainer.
The only place that writes and reads their labels.

    ppl-2.0       the perplexity is at or below 2.0
    ppl-2@0.02    it fell by less than 0.02 in each of the last 2 evaluations

Whoever trains calls `Rules.observe()` with each measurement and saves a checkpoint for every rule
that it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tuning.runs.errors import UserError, choose
from tuning.runs.identity import number


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that is measured while SFT runs."""

    name: str
    """As labels have it."""
    title: str
    """As metrics and people call it."""
    falls: bool
    """Whether lower is better."""

    def reached(self, value: float, threshold: float) -> bool:
        """Whether a value is as good as a threshold, or better."""
        return value <= threshold if self.falls else value >= threshold

    def best(self, values: Iterable[float]) -> float | None:
        """The best of some values."""
        return (min if self.falls else max)(values, default=None)


PERPLEXITY = Measure(name="ppl", title="perplexity", falls=True)
MEASURES = {measure.name: measure for measure in (PERPLEXITY,)}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Fires when the measure is at `value`, or better."""

    value: float
    measure: Measure = PERPLEXITY

    @property
    def setting(self) -> str:
        """The label without the measure: `2.0`."""
        return number(self.value)

    @property
    def label(self) -> str:
        """`ppl-2.0`"""
        return f"{self.measure.name}-{self.setting}"

    @property
    def words(self) -> str:
        """`ppl 2.0`"""
        return f"{self.measure.name} {self.setting}"

    @property
    def short(self) -> str:
        """`ppl 2.0`"""
        return self.words

    @property
    def spelled_out(self) -> str:
        """`perplexity 2.0`"""
        return f"{self.measure.title} {self.setting}"

    def met(self, history: list[float]) -> bool:
        """Whether the newest of the measurements meets the rule."""
        return self.measure.reached(history[-1], self.value)

    def missed(self, best: float) -> str:
        """Why a finished run has no such sweetspot."""
        shown = (f"{best:.{digits}g}" for digits in range(3, 17))
        exact = next((s for s in shown if not self.measure.reached(float(s), self.value)), None)
        return f"{self.measure.title} never reached {self.setting} (best {exact or repr(best)})"

    def metadata(self) -> dict[str, Any]:
        """The rule as the metadata of a sweetspot have it."""
        return {"threshold_type": self.measure.title, "threshold_value": self.value}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Fires when the measure got better by less than `change` in each of the last `evaluations`."""

    evaluations: int
    change: float
    measure: Measure = PERPLEXITY

    @property
    def setting(self) -> str:
        """The label without the measure: `2@0.02`."""
        return f"{self.evaluations}@{number(self.change)}"

    @property
    def label(self) -> str:
        """`ppl-2@0.02`"""
        return f"{self.measure.name}-{self.setting}"

    @property
    def words(self) -> str:
        """`patience 2@0.02`"""
        return f"patience {self.setting}"

    @property
    def short(self) -> str:
        """`2@0.02`"""
        return self.setting

    @property
    def spelled_out(self) -> str:
        """`patience 2@0.02`"""
        return self.words

    def met(self, history: list[float]) -> bool:
        """Whether the last measurements meet the rule."""
        recent = history[-self.evaluations - 1 :]
        if len(recent) <= self.evaluations:
            return False
        sign = 1 if self.measure.falls else -1
        return all(sign * (a - b) < self.change for a, b in pairwise(recent))

    def missed(self, best: float) -> str:
        """Why a finished run has no such sweetspot."""
        moving = "falling" if self.measure.falls else "rising"
        return f"{self.measure.title} kept {moving} by {number(self.change)} and more"

    def metadata(self) -> dict[str, Any]:
        """The rule as the metadata of a sweetspot have it."""
        kind = f"{self.measure.title}_patience"
        return {"threshold_type": kind, "threshold_value": self.setting}


Rule = Threshold | Patience

_LABEL = re.compile(r"(?P<measure>[^-]+)-(?:(?P<evaluations>\d+)@)?(?P<value>[\d.]+(?:e[-+]?\d+)?)")


def parse(label: str) -> Rule:
    """The rule that has this label; UserError for anything else."""
    found = _LABEL.fullmatch(label)
    if found is None or found["measure"] not in MEASURES:
        raise UserError(
            f"'{label}' is not the label of a sweetspot; write ppl-THRESHOLD, for example ppl-2.0, "
            "or ppl-EVALUATIONS@DECREASE."
        )
    measure = MEASURES[found["measure"]]
    if found["evaluations"]:
        evaluations, change = int(found["evaluations"]), float(found["value"])
        return Patience(evaluations=evaluations, change=change, measure=measure)
    return Threshold(value=float(found["value"]), measure=measure)


def named(name: str, rules: Iterable[Rule], whose: str) -> Rule:
    """The one of `rules` that a person means: `2`, `2.0` and `ppl-2` are `ppl-2.0`."""
    by_label = {rule.label: rule for rule in rules}
    try:
        label = parse(name if _LABEL.fullmatch(name) else f"{PERPLEXITY.name}-{name}").label
    except (UserError, ValueError):
        label = name
    return by_label[choose(f"sweetspot of '{whose}':", label, by_label)]


class Rules:
    """The rules of one run and how far they are; each fires at most once."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self.history: list[float] = []
        self.fired: dict[str, int] = {}
        self.met_by_base: dict[str, float] = {}

    def observe(self, step: int, value: float) -> list[Rule]:
        """Take in the measurement after `step` optimizer steps; the rules that fire with it.

        A rule that the model meets before the first step never fires.
        """
        self.history.append(value)
        met = [rule for rule in self.open if rule.met(self.history)]
        if step == 0:
            self.met_by_base |= {rule.label: value for rule in met}
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

    def outcome(self) -> dict[str, dict[str, Any]]:
        """For each label: reached, met_by_base or unreached, and the step or the value."""
        found: dict[str, dict[str, Any]] = {}
        for rule in self.rules:
            label = rule.label
            if label in self.fired:
                found[label] = {"state": "reached", "step": self.fired[label]}
            elif label in self.met_by_base:
                found[label] = {"state": "met_by_base", "value": self.met_by_base[label]}
            else:
                best = rule.measure.best(self.history)
                found[label] = {"state": "unreached", "best": best}
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry."""
        return {"history": self.history, "fired": self.fired, "met_by_base": self.met_by_base}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.history = list(state["history"])
        self.fired = dict(state["fired"])
        self.met_by_base = dict(state["met_by_base"])
