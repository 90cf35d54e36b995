"""When SFT reaches a sweetspot: threshold and patience rules as values, without model or trainer.
Only this module formats and parses their labels.

    ppl-2.0          the perplexity is at or below 2.0
    ppl-2@0.02       it fell by less than 0.02 in each of the last 2 evaluations
    pass@1-0.30      pass@1 is at or above 0.30
    pass@1-2@0.02    it rose by less than 0.02 in each of the last 2 evaluations

Trainers call `Rules.observe()` with each measurement and save a checkpoint for every rule that it
returns.
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
    """A quantity that is measured during SFT."""

    name: str
    """The name in labels: `ppl`."""
    title: str
    """The name in metrics and messages: `perplexity`."""
    falls: bool
    """Whether lower is better."""
    decimals: int = 1
    """Of a value in a label, at least."""

    def written(self, value: float) -> str:
        """A value as labels have it: the fewest digits that round-trip, and `decimals` at least."""
        text = number(value)
        digits = text.partition(".")[2]
        missing = 0 if "e" in text else self.decimals - len(digits)
        return text + "0" * missing

    def reached(self, value: float, threshold: float) -> bool:
        """Whether a value is at least as good as a threshold."""
        return value <= threshold if self.falls else value >= threshold

    def best(self, values: Iterable[float]) -> float | None:
        """The best of some values; None if there are none."""
        return (min if self.falls else max)(values, default=None)


PERPLEXITY = Measure(name="ppl", title="perplexity", falls=True)


def pass_at(k: int) -> Measure:
    """pass@k of sampled answers."""
    return Measure(name=f"pass@{k}", title=f"pass@{k}", falls=False, decimals=2)


def measure_named(name: str) -> Measure | None:
    """The measure of a name in labels; None for another name."""
    if name == PERPLEXITY.name:
        return PERPLEXITY
    match = re.fullmatch(r"pass@([1-9]\d*)", name)
    return pass_at(int(match[1])) if match else None


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Fires when the measure is at least as good as `value`."""

    value: float
    measure: Measure = PERPLEXITY

    @property
    def setting(self) -> str:
        """The label without the measure: `2.0`."""
        return self.measure.written(self.value)

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
        """Whether the newest measurement meets the rule."""
        return self.measure.reached(history[-1], self.value)

    def missed(self, best: float) -> str:
        """The message why a finished run, with `best` as its best value, has no such sweetspot."""
        shown = (f"{best:.{digits}g}" for digits in range(3, 17))
        exact = next((s for s in shown if not self.measure.reached(float(s), self.value)), None)
        return f"{self.measure.title} never reached {self.setting} (best {exact or repr(best)})"

    def metadata(self) -> dict[str, Any]:
        """The entries for the rule in sweetspot_metadata.json."""
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
        return f"{self.evaluations}@{self.measure.written(self.change)}"

    @property
    def label(self) -> str:
        """`ppl-2@0.02`"""
        return f"{self.measure.name}-{self.setting}"

    @property
    def words(self) -> str:
        """`patience 2@0.02`; of pass@k, `pass@1 patience 2@0.02`."""
        of = "" if self.measure == PERPLEXITY else f"{self.measure.name} "
        return f"{of}patience {self.setting}"

    @property
    def short(self) -> str:
        """`2@0.02`; of pass@k, `pass@1 2@0.02`."""
        return self.setting if self.measure == PERPLEXITY else f"{self.measure.name} {self.setting}"

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
        """The message why a finished run, with `best` as its best value, has no such sweetspot."""
        moving = "falling" if self.measure.falls else "rising"
        return f"{self.measure.title} kept {moving} by {self.measure.written(self.change)} or more"

    def metadata(self) -> dict[str, Any]:
        """The entries for the rule in sweetspot_metadata.json."""
        kind = f"{self.measure.title}_patience"
        return {"threshold_type": kind, "threshold_value": self.setting}


Rule = Threshold | Patience


def brief(rule: Rule) -> str:
    """The label, without the measure where that is perplexity: `2.0`, `pass@1-0.30`."""
    return rule.setting if rule.measure == PERPLEXITY else rule.label


_LABEL = re.compile(
    r"(?P<measure>[^-]+)-(?:(?P<evaluations>\d+)@)?(?P<value>(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
)


def parse(label: str) -> Rule:
    """The rule with this label; UserError for anything else."""
    match = _LABEL.fullmatch(label)
    measure = measure_named(match["measure"]) if match else None
    if match is None or measure is None:
        raise UserError(
            f"'{label}' is not a sweetspot label; write ppl-THRESHOLD or pass@K-TARGET, for "
            "example ppl-2.0 or pass@1-0.30, or ppl-EVALUATIONS@DECREASE."
        )
    if match["evaluations"]:
        evaluations, change = int(match["evaluations"]), float(match["value"])
        return Patience(evaluations=evaluations, change=change, measure=measure)
    return Threshold(value=float(match["value"]), measure=measure)


def named(name: str, rules: Iterable[Rule], whose: str) -> Rule:
    """Look up a rule as users write it: `2`, `2.0` and `ppl-2` are `ppl-2.0`; or UserError."""
    by_label = {rule.label: rule for rule in rules}
    try:
        label = parse(name if _LABEL.fullmatch(name) else f"{PERPLEXITY.name}-{name}").label
    except (UserError, ValueError):
        label = name
    return by_label[choose(f"sweetspot of '{whose}':", label, by_label)]


class Rules:
    """The rules of one run and their state; each fires at most once."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self.history: list[float] = []
        self.fired: dict[str, int] = {}
        self.met_by_base: dict[str, float] = {}

    def observe(self, step: int, value: float) -> list[Rule]:
        """Record the measurement after `step` optimizer steps; returns the rules that it fires.

        A rule that the base meets (at step 0) never fires.
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
        """Whether the last open rule has fired; rules met by the base alone do not count."""
        return bool(self.fired) and not self.open

    def outcome(self) -> dict[str, dict[str, Any]]:
        """For each label: reached, met_by_base or unreached, and the step or the value."""
        outcomes: dict[str, dict[str, Any]] = {}
        for rule in self.rules:
            label = rule.label
            if label in self.fired:
                outcomes[label] = {"state": "reached", "step": self.fired[label]}
            elif label in self.met_by_base:
                outcomes[label] = {"state": "met_by_base", "value": self.met_by_base[label]}
            else:
                best = rule.measure.best(self.history)
                outcomes[label] = {"state": "unreached", "best": best}
        return outcomes

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint, as JSON values."""
        return {"history": self.history, "fired": self.fired, "met_by_base": self.met_by_base}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state()` returned, to resume."""
        self.history = list(state["history"])
        self.fired = dict(state["fired"])
        self.met_by_base = dict(state["met_by_base"])
