"""A grid of budgets in tables: the best split of each budget, and the budget that a score takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuning.report.answer import Ranking, split
from tuning.report.comparisons import Comparisons
from tuning.report.formats import UNKNOWN, count, interval, listed, seconds, share, tokens
from tuning.report.labels import Labels
from tuning.report.rows import Budget, Row, base_of, budgets

SHARES = (0.25, 0.5, 0.75, 0.95)
"""Where the scores lie that budgets are given for, from the base model to the best model."""
Point = tuple[float, float, float]
"""An estimate and its bounds."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best split of a budget."""

    model: str
    budget: str
    split: str
    score: str
    ties: str
    """The ways that are not told from it."""
    cost: str
    """Annotation cost of its examples."""
    tokens: str
    seconds: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method and a share of SFT, over the budgets that it was given."""

    model: str | None
    method: str | None
    """None for SFT alone."""
    ratio: float
    points: tuple[tuple[int, Point], ...]
    """Budget and pass@1, budgets ascending."""

    @property
    def name(self) -> str:
        """`25% SFT + DPO`"""
        return _recipe(self.ratio, self.method)


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The table of budgets that scores take: a line for each recipe, a column for each score."""

    targets: list[str]
    lines: list[tuple[str, list[str]]]


def best_splits(rows: Sequence[Row], comparisons: Comparisons, labels: Labels) -> list[Best]:
    """The best split of every budget that was split in several ways; none with one budget."""
    found = {key: ways for key, ways in budgets(rows).items() if len(ways) > 1}
    if len(found) < 2:
        return []
    rankings = {key: Ranking.of(ways, comparisons, labels) for key, ways in found.items()}
    return [_best(key, ranking, labels) for key, ranking in rankings.items()]


def _best(key: Budget, ranking: Ranking, labels: Labels) -> Best:
    best = ranking.best
    assert best.scores is not None
    ties = [_way(row) for row in ranking.ties]
    whole = best.sft_cost + best.pft_cost if best.sft_cost and best.pft_cost else None
    return Best(
        model=str(key[0]) if labels.models else "",
        budget=labels.budget(key[1]),
        split=split(best),
        score=interval(*best.scores.first),
        ties=listed(ties, 6) if ranking.settled else "too few prompts to rank",
        cost=cost_of(best),
        tokens=tokens(whole.tokens) if whole else UNKNOWN,
        seconds=seconds(whole.seconds) if whole else UNKNOWN,
    )


def cost_of(row: Row) -> str:
    """The annotation cost of a model's examples."""
    return UNKNOWN if row.annotation_cost is None else f"{row.annotation_cost:,.6g}"


def _way(row: Row) -> str:
    """`25% SFT, then DPO`; of a fork, how it is split."""
    if row.sft_ratio is None:
        return split(row)
    return _recipe(row.sft_ratio, row.pft_method)


def _recipe(ratio: float, method: str | None) -> str:
    if ratio >= 1 or not method:
        return "SFT alone"
    name = method.upper()
    return f"{share(ratio)} SFT + {name}" if ratio else f"{name} alone"


def recipes(rows: Sequence[Row]) -> list[Recipe]:
    """Every method and share of SFT that was given two or more budgets of a model."""
    found: dict[tuple[str | None, str | None, float], dict[int, Point]] = {}
    for (model, size), ways in budgets(rows).items():
        for row in ways:
            if row.sft_ratio is not None and row.scores and size:
                key = (model, row.pft_method, row.sft_ratio)
                found.setdefault(key, {})[size] = row.scores.first
    return [
        Recipe(model=model, method=method, ratio=ratio, points=tuple(sorted(points.items())))
        for (model, method, ratio), points in found.items()
        if len(points) > 1
    ]


def needed(rows: Sequence[Row], labels: Labels) -> Needed | None:
    """What every recipe takes to reach some scores; None where budgets were not varied."""
    found = recipes(rows)
    levels = targets(rows)
    if not found or not levels:
        return None
    lines = [
        (
            f"{recipe.model}: {recipe.name}" if labels.models else recipe.name,
            [budget_for(recipe.points, level) for level in levels],
        )
        for recipe in found
    ]
    return Needed(targets=[f"{level:.2f}" for level in levels], lines=lines)


def targets(rows: Sequence[Row]) -> list[float]:
    """Scores between that of the base model and the best, as hundredths."""
    scored = [row for ways in budgets(rows).values() for row in ways]
    tops = [row.scores.first[0] for row in scored if row.scores]
    bases = [b.scores.first[0] for row in scored if (b := base_of(rows, row)) and b.scores]
    if not tops:
        return []
    low, high = min(bases, default=min(tops)), max(tops)
    levels = [round(low + share * (high - low), 2) for share in SHARES]
    return sorted({level for level in levels if low < level < high})


def budget_for(points: Sequence[tuple[int, Point]], level: float) -> str:
    """The budget at which pass@1 reaches a level, between measured budgets along their logarithm;
    in brackets, where the upper and the lower ends of the intervals reach it.
    """
    first, last = points[0][0], points[-1][0]
    middle, low, high = (
        _crossing([(size, point[which]) for size, point in points], level) for which in (0, 2, 1)
    )
    if middle is None:
        return f"> {count(last)}" + (f" [{_end(low, first)}, {UNKNOWN}]" if low is not None else "")
    upper = count(_rounded(high)) if high is not None else UNKNOWN
    text = f"≤ {count(first)}" if middle <= first else count(_rounded(middle))
    if low is not None and high is not None and high <= first:
        return text
    return f"{text} [{_end(low, first)}, {upper}]"


def _end(value: float | None, first: int) -> str:
    return (
        "–" if value is None else f"≤ {count(first)}" if value <= first else count(_rounded(value))
    )


def _rounded(value: float) -> int:
    """To two digits: an interpolated budget is not known better."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / 10**digits) * 10**digits)


def _crossing(curve: Sequence[tuple[int, float]], level: float) -> float | None:
    """The first budget at which a curve is at a level or above; None if it never is."""
    if curve[0][1] >= level:
        return float(curve[0][0])
    for (left, below), (right, above) in pairwise(curve):
        if below < level <= above:
            part = (level - below) / (above - below)
            return math.exp(math.log(left) + part * (math.log(right) - math.log(left)))
    return None
