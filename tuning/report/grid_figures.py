"""The figures of a grid of budgets: the score over the share of SFT, a line for each budget, and
over the budget, a line for each share; a panel for each base model and method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tuning.report.formats import count, interval, share
from tuning.report.grid import Recipe, recipes
from tuning.report.labels import Labels
from tuning.report.palette import CARD, INK, MUTED, RAMP, SERIES, Palette
from tuning.report.rows import Row, base_of, budgets, of_role
from tuning.report.svg import Drawing, drawing

FEWEST = 3
"""Lines of whole budgets, below which one plot has room for all of them."""
ACROSS = 2
"""Panels beside each other."""
APART = 0.32
"""From the first to the last line at one place of the axis, as a share of the step to the next."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A base model and a method."""

    model: str | None
    method: str | None
    rows: list[Row]

    def title(self, several: bool) -> str:
        """The method, and the model if there are several."""
        method = f"SFT, then {self.method.upper()}" if self.method else "SFT alone"
        return f"{self.model}: {method}" if several else method


def _panels(rows: Sequence[Row]) -> list[_Panel]:
    """The panels with two or more shares of a budget; SFT alone is part of each of its model."""
    found = []
    scored = [row for ways in budgets(rows).values() for row in ways if row.sft_ratio is not None]
    for model in dict.fromkeys(row.model for row in scored):
        mine = [row for row in scored if row.model == model]
        for method in dict.fromkeys(row.pft_method for row in mine if row.pft_method) or [None]:
            kept = [row for row in mine if row.pft_method in (method, None)]
            found.append(_Panel(model=model, method=method, rows=kept))
    return found


def is_grid(rows: Sequence[Row]) -> bool:
    """Whether there are so many budgets and methods that each needs a line of its own."""
    lines = {(row.budget, row.pft_method) for panel in _panels(rows) for row in panel.rows}
    return sum(method is not None for _, method in lines) >= FEWEST


def ratio_figure(rows: Sequence[Row], labels: Labels, palette: Palette) -> str | None:
    """pass@1 over the share of SFT, a line for each budget; shares are evenly spaced."""
    panels = _panels(rows)
    ratios = sorted(
        {row.sft_ratio for panel in panels for row in panel.rows if row.sft_ratio is not None}
    )
    if len(ratios) < 2:
        return None
    place = {ratio: number for number, ratio in enumerate(ratios)}
    sizes = sorted({row.total_budget or 0 for panel in panels for row in panel.rows})
    with drawing("ratio", "pass@1 over the share of SFT", _height(panels)) as made:
        for number, panel in enumerate(panels):
            ax = _axes(made, panels, number, rows)
            ax.xaxis.set_major_locator(FixedLocator(range(len(ratios))))
            ax.set_xticklabels([share(ratio) for ratio in ratios])
            ax.set_xlabel("share of the budget spent on SFT")
            for line, size in enumerate(sizes):
                mine = [row for row in panel.rows if row.total_budget == size]
                mine.sort(key=lambda row: row.sft_ratio or 0)
                shift = _shift(line, len(sizes))
                xs = [place[row.sft_ratio or 0] + shift for row in mine]
                _line(made, ax, xs, mine, palette[mine[0]] if mine else INK, labels)
        colours = {row.total_budget: palette[row] for panel in panels for row in panel.rows}
        entries = [(labels.budget(size), colours[size]) for size in sizes]
        _legend(made, entries)
    return made.svg


def budget_figure(rows: Sequence[Row], labels: Labels) -> str | None:
    """pass@1 over the budget, a line for each share of SFT; None with fewer than two budgets."""
    found = recipes(rows)
    panels = [panel for panel in _panels(rows) if len({r.total_budget for r in panel.rows}) > 1]
    if not found or not panels:
        return None
    ratios = sorted({recipe.ratio for recipe in found})
    sizes = sorted({size for recipe in found for size, _ in recipe.points})
    with drawing("budget", "pass@1 over the budget", _height(panels)) as made:
        for number, panel in enumerate(panels):
            ax = _axes(made, panels, number, rows)
            _budget_axis(ax, sizes, labels)
            for line, ratio in enumerate(ratios):
                mine = [row for row in panel.rows if row.sft_ratio == ratio]
                mine.sort(key=lambda row: row.total_budget or 0)
                shift = 1 + 0.25 * _shift(line, len(ratios))
                xs = [(row.total_budget or 0) * shift for row in mine]
                _line(made, ax, xs, mine, _ramp(line, len(ratios)), labels)
        names = [Recipe(model=None, method="pft", ratio=ratio, points=()).name for ratio in ratios]
        names = [name.replace("PFT", "preference tuning") for name in names]
        _legend(made, [(n, _ramp(i, len(ratios))) for i, n in enumerate(names)])
    return made.svg


def _height(panels: Sequence[_Panel]) -> float:
    return 0.7 + 3.6 * math.ceil(len(panels) / ACROSS)


def _axes(made: Drawing, panels: Sequence[_Panel], number: int, rows: Sequence[Row]) -> Any:
    """The axes of a panel with the score of its base model; all panels have one scale."""
    columns = min(ACROSS, len(panels))
    ax = made.axes(math.ceil(len(panels) / columns), columns, number + 1)
    panel = panels[number]
    several = len({each.model for each in panels}) > 1
    ax.set_title(panel.title(several), color=INK, fontweight="bold")
    top = max(row.scores.first[2] for each in panels for row in each.rows if row.scores)
    ax.set_ylim(0, min(1.02, max(top * 1.08, 0.02)))
    ax.grid(False, axis="x")
    if number % columns == 0:
        ax.set_ylabel("pass@1")
    base = base_of(of_role(rows, "base"), panel.rows[0])
    if base and base.scores:
        middle, low, high = base.scores.first
        band = ax.axhspan(low, high, color=SERIES["base"][0], alpha=0.22, lw=0, zorder=1)
        ax.axhline(middle, color=SERIES["base"][0], lw=1.2, zorder=1)
        made.tip(band, f"base model: {interval(*base.scores.first)}")
    return ax


def _budget_axis(ax: Any, sizes: Sequence[int], labels: Labels) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
    ax.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    ax.set_xlabel(f"budget, {labels.unit}, logarithmic")


def _shift(line: int, lines: int) -> float:
    """Between lines, so that their intervals stand beside each other."""
    return APART * (line / max(lines - 1, 1) - 0.5)


def _line(
    made: Drawing, ax: Any, xs: Sequence[float], rows: Sequence[Row], colour: str, labels: Labels
) -> None:
    """Points with their intervals, joined."""
    scores = [row.scores.first for row in rows if row.scores]
    ax.plot(xs, [middle for middle, _, _ in scores], color=colour, lw=1.5, zorder=3)
    for x, row, (middle, low, high) in zip(xs, rows, scores, strict=True):
        ax.plot([x, x], [low, high], color=colour, lw=1.3, alpha=0.75, zorder=2)
        (mark,) = ax.plot([x], [middle], "o", ms=5.5, color=colour, mec=CARD, mew=0.8, zorder=4)
        made.tip(mark, f"{labels.label(row)}: {interval(middle, low, high)}")


def _ramp(line: int, lines: int) -> str:
    """The colour of a share of SFT, from light for none to dark for all."""
    return SERIES[RAMP[round(line / max(lines - 1, 1) * (len(RAMP) - 1))]][0]


def _legend(made: Drawing, entries: Sequence[tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], marker="o", ms=6, lw=1.5, color=colour, mec=CARD, label=name)
        for name, colour in entries
    ]
    columns = min(len(handles), 4)
    made.figure.legend(handles=handles, loc="outside lower center", ncols=columns, labelcolor=MUTED)
