"""What a search for the best split tried: which splits were run, which were stopped early and why,
and what of the grid was not run. From search.json and the run directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning.plan import Plan
from tuning.report.formats import UNKNOWN, count, interval
from tuning.search.arms import Arm, Result
from tuning.search.grid import arms_of, results
from tuning.search.record import Record
from tuning.search.rounds import EXTEND, SCREEN, START, STOP, Belief, Round, actions

_DID = {
    START: "Run",
    SCREEN: "Run, on the first prompts",
    EXTEND: "Evaluate on all prompts",
    STOP: "Stop",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One split in the table of the grid."""

    text: str
    kind: str = ""
    """full, best, stopped, failed or "" for what was not run."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The splits of one budget with one method."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The section about a search."""

    text: str
    ratios: tuple[str, ...]
    lines: tuple[Line, ...]
    best: tuple[str, ...]
    """What is thought of each budget in the end, a sentence each."""
    rounds: tuple[tuple[str, ...], ...]
    """What each round did, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Splits and budgets in words."""

    arms: tuple[Arm, ...]
    unit: str = "examples"
    """What budgets are counted in."""

    def budget(self, model: str, size: int) -> str:
        """`1,000 examples`, with the model if there are several."""
        several = len({arm.model for arm in self.arms}) > 1
        return f"{f'{model}, ' if several else ''}{count(size)} {self.unit}"

    def of(self, key: str) -> str:
        """`250 of 1,000 examples on SFT, then DPO`."""
        arm = next((arm for arm in self.arms if arm.key == key), None)
        if arm is None:
            return key
        if not arm.method or not arm.n_sft:
            return f"all {count(arm.size)} {self.unit} on {arm.method.upper() or 'SFT'}"
        if self.unit != "examples":
            return f"SFT on {count(arm.n_sft)} examples, then {arm.method.upper()}"
        return f"{count(arm.n_sft)} of {count(arm.size)} examples on SFT, then {arm.method.upper()}"


def searched(plan: Plan, home: Path) -> Searched | None:
    """The section about the search that a plan is of; None for a plan of anything else."""
    folder = home / "outputs" / "reports" / plan.experiment
    record = Record.read(folder) if "search" in plan.about else None
    if record is None or not record.rounds:
        return None
    stages = arms_of(record.plan)
    priced = not {"sft_cost", "pft_cost"}.isdisjoint(record.plan.about)
    names = Names(arms=tuple(stages), unit="of cost" if priced else "examples")
    done = actions(record.rounds)
    known = {stage.name for stage in plan.stages}
    planned = {a: of for a, of in stages.items() if {stage.name for stage in of} <= known}
    found = results(plan, {a: of for a, of in planned.items() if a.key in done}, home)
    ratios = sorted({arm.ratio for arm in stages})
    best = {belief.best for belief in record.rounds[-1].beliefs}
    return Searched(
        text=_text(list(stages), found, record.rounds, done),
        ratios=tuple(f"{100 * ratio:.3g}%" for ratio in ratios),
        lines=tuple(_lines(names, found, ratios, best)),
        best=tuple(beliefs(record.rounds[-1], names, found)),
        rounds=tuple(_round(each, names) for each in record.rounds if each.steps),
    )


def _text(
    arms: Sequence[Arm],
    found: Mapping[Arm, Result],
    rounds: Sequence[Round],
    done: Mapping[str, str],
) -> str:
    """How much of the grid was run, and why the search ended."""
    stopped = sum(action == STOP for action in done.values())
    failed = sum(result.best is None for result in found.values())
    early = next((r.first.prompts for r in found.values() if r.first and not r.full), 0)
    parts = [f"The search ran {len(done)} of the {len(arms)} splits of the grid"]
    if stopped:
        parts.append(f"stopped {stopped} of them after the first {count(early)} prompts")
    text = " and ".join(parts)
    if failed:
        text += f" ({failed} failed or are not finished)"
    text += f"; the other {len(arms) - len(done)} were not run. "
    last = rounds[-1]
    if last.end:
        more = f"{len(rounds) - 1} round{'s' if len(rounds) > 2 else ''}"
        return f"{text}It ended after {more}, since {last.end}."
    return f"{text}It is in round {len(rounds)} and not over."


def _lines(
    names: Names, found: Mapping[Arm, Result], ratios: Sequence[float], best: set[str]
) -> list[Line]:
    """A line for each budget and method; SFT alone stands in every line of its budget."""
    lines = []
    for contest in dict.fromkeys(arm.contest for arm in names.arms):
        own = [arm for arm in names.arms if arm.contest == contest]
        for method in dict.fromkeys(a.method for a in own if a.method) or [""]:
            at = {arm.ratio: arm for arm in own if arm.method in ("", method)}
            cells = [_cell(at.get(ratio), found, best) for ratio in ratios]
            name = f"{names.budget(*contest)}, {method.upper() or 'SFT'}"
            lines.append(Line(name=name, cells=tuple(cells)))
    return lines


def _cell(arm: Arm | None, found: Mapping[Arm, Result], best: set[str]) -> Cell:
    if arm is None or arm not in found:
        return Cell(text="" if arm is None else UNKNOWN)
    result = found[arm]
    if result.full is not None:
        return Cell(text=f"{result.full.score:.3f}", kind="best" if arm.key in best else "full")
    if result.first is not None:
        on = f"{result.first.score:.3f} on {count(result.first.prompts)}"
        return Cell(text=on, kind="stopped")
    return Cell(text="no result", kind="failed")


def beliefs(last: Round, names: Names, found: Mapping[Arm, Result]) -> list[str]:
    """What is expected of the best split of each budget, and which one was measured as better."""
    return [
        f"{names.budget(b.model, b.size)}: {names.of(b.best)}, "
        f"expected pass@1 {interval(b.score, b.low, b.high)}. With a probability of {b.sure:.0%} "
        f"no other split is better by more than {b.within:.3f}, half the interval of its score."
        + _measured(b, names, found)
        for b in last.beliefs
    ]


def _measured(belief: Belief, names: Names, found: Mapping[Arm, Result]) -> str:
    """The split with the highest score, where another one is expected to be the best."""
    scores = {
        arm.key: result.full.score
        for arm, result in found.items()
        if result.full and arm.contest == (belief.model, belief.size)
    }
    highest = max(scores, key=lambda key: scores[key], default=belief.best)
    if scores.get(highest, 0) <= scores.get(belief.best, 0):
        return ""
    return (
        f" The highest score, {scores[highest]:.3f}, is that of {names.of(highest)}: what "
        "the splits beside it scored makes that look like luck."
    )


def _round(made: Round, names: Names) -> tuple[str, ...]:
    return tuple(f"{_DID[s.action]}: {names.of(s.arm)} ({s.why})" for s in made.steps)
