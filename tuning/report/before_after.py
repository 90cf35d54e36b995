"""What each training changed: the score, the perplexity and the implicit reward before and after
it, from the before_after.json that a training leaves that was asked to measure them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.report.formats import UNKNOWN, perplexity, share, signed
from tuning.report.html_tables import Name, name_of
from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.rows import Row
from tuning.runs import measured as of_run
from tuning.runs.rundir import RunDirectory

Measured = Mapping[str, Any]
"""The content of before_after.json: `before`, `after` and `change`."""
_MEASURES = {"score": "pass_at_1", "perplexity": "perplexity", "reward": "reward_accuracy"}
_ENDS = {"estimate": "", "low": "_low", "high": "_high"}
LENGTHS = ("chosen_longer", "longer_preferred")


def measured(run: RunDirectory | None) -> Measured | None:
    """What the training of a run changed; None where that was not measured."""
    found = (of_run.read(run) if run else None) or {}
    whole = all(isinstance(found.get(part), dict) for part in ("before", "after", "change"))
    return found if whole else None


def columns(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Further columns of results.csv with a value for each row; none where nothing was measured.

    `pass_at_1_before`, `..._after`, `..._change` and so on, each with `_low` and `_high`;
    `perplexity_change` is a factor.
    """
    found: dict[str, list[float | None]] = {}
    for side in ("before", "after", "change"):
        for key, measure in _MEASURES.items():
            for end, suffix in _ENDS.items():
                values = [_value(row, side, key, end) for row in rows]
                found[f"{measure}_{side}{suffix}"] = values
    margins = [_of(row, "after", "reward").get("margin") or {} for row in rows]
    found["reward_margin_after"] = [margin.get("estimate") for margin in margins]
    for name in LENGTHS:
        found[name] = [_of(row, "after", "reward").get(name) for row in rows]
    return {name: values for name, values in found.items() if set(values) - {None}}


def _of(row: Row, side: str, key: str) -> Mapping[str, Any]:
    found = (row.before_after or {}).get(side, {}).get(key)
    return found if isinstance(found, dict) else {}


def _value(row: Row, side: str, key: str, end: str) -> float | None:
    value = _of(row, side, key).get(end)
    return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure, and its interval below it."""

    value: str = UNKNOWN
    interval: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table: what one training changed."""

    name: Name
    start: str
    """The name of what it started from."""
    score: tuple[Cell, Cell, Cell]
    """pass@1 before, after, and the difference."""
    kind: str
    """better, worse or none: what the interval of the difference says."""
    perplexity: tuple[Cell, Cell, Cell]
    """Before, after, and the factor."""
    reward: tuple[Cell, Cell]
    """The accuracy after it, and how often the longer answer has the higher reward."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the trainings changed; a group of columns is shown if any line has it."""

    lines: list[Line]
    scores: bool
    perplexities: bool
    rewards: bool
    pairs: str
    """How many held-out pairs there are, and in how many the chosen answer is longer."""


def table(rows: Sequence[Row], labels: Labels, palette: Palette) -> Table | None:
    """The table of the page; None where nothing was measured."""
    shown = [row for row in rows if row.before_after]
    if not shown:
        return None
    changes = [_of(row, "change", "score") for row in shown]
    return Table(
        lines=[_line(row, rows, labels, palette) for row in shown],
        scores=any(changes),
        perplexities=any(_of(row, "after", "perplexity") for row in shown),
        rewards=any(_of(row, "after", "reward") for row in shown),
        pairs=_pairs(shown),
    )


def _line(row: Row, rows: Sequence[Row], labels: Labels, palette: Palette) -> Line:
    change, start = _of(row, "change", "score"), _of_start(row)
    reward = _of(row, "after", "reward")
    parent = next((r for r in rows if r.run_name == start), None)
    kind = "none"
    if change:
        kind = "better" if change["low"] > 0 else "worse" if change["high"] < 0 else "none"
    return Line(
        name=name_of(row, labels, palette),
        start=labels.label(parent) if parent else start,
        score=(
            _cell(_of(row, "before", "score"), _plain),
            _cell(_of(row, "after", "score"), _plain),
            _cell(change, signed),
        ),
        kind=kind,
        perplexity=(
            _cell(_of(row, "before", "perplexity"), perplexity),
            _cell(_of(row, "after", "perplexity"), perplexity),
            _cell(_of(row, "change", "perplexity"), lambda factor: f"×{_plain(factor)}"),
        ),
        reward=(
            _cell(reward, _plain),
            Cell(value=share(reward.get("longer_preferred"))),
        ),
    )


def _cell(found: Mapping[str, Any], written: Callable[[float], str]) -> Cell:
    if not found:
        return Cell()
    low, high = written(found["low"]), written(found["high"])
    return Cell(value=written(found["estimate"]), interval=f"[{low}, {high}]")


def _plain(value: float) -> str:
    return f"{value:.3f}"


def _of_start(row: Row) -> str:
    return str((row.before_after or {}).get("before", {}).get("model", ""))


def _pairs(rows: Sequence[Row]) -> str:
    for row in rows:
        if reward := _of(row, "after", "reward"):
            longer = share(reward.get("chosen_longer"))
            return (
                f"{reward['pairs']:,} held-out pairs, in {longer} of which the chosen answer is "
                "the longer one"
            )
    return ""
