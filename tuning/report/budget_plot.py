"""The figure of a budget experiment: pass@1 against the share of the examples that SFT took, a line
for each base model, preference method and budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, PercentFormatter

from tuning.report.palette import MUTED, Palette, dashes, marker
from tuning.report.plots import base_band, point
from tuning.report.row import Row, budgets, of_role
from tuning.report.svg import Drawing, drawing, spread
from tuning.report.table import count

SHIFT = 0.007
"""Between lines, so that intervals at the same share stand beside each other."""
COLUMNS = 2
"""Of the legend."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One way of dividing a budget: a model, a budget and a method, at several shares."""

    model: str | None
    size: int | None
    method: str | None
    points: tuple[tuple[float, Row], ...]

    def words(self, lines: Sequence[_Line]) -> str:
        """What tells it from the other lines, and what it is."""
        parts = []
        if len({line.model for line in lines}) > 1:
            parts.append(str(self.model))
        if len({line.size for line in lines}) > 1:
            parts.append(f"{count(self.size)} examples")
        kind = f"SFT, then {self.method.upper()} on the rest" if self.method else "SFT alone"
        return ": ".join(filter(None, (", ".join(parts), kind)))


def share_figure(rows: Sequence[Row]) -> str | None:
    """pass@1 against the share of SFT; None where fewer than two ways were scored."""
    lines = _lines(budgets(rows))
    scored = [row for line in lines for _, row in line.points]
    if len(scored) < 2:
        return None
    palette = Palette(rows)
    height = 4.6 + 0.22 * math.ceil(len(lines) / COLUMNS)
    with drawing("share", "pass@1 against the share of the budget spent on SFT", height) as made:
        ax = made.axes()
        top = max(row.scores.first[2] for row in scored if row.scores)
        ax.set(xlim=(-0.04, 1.06), ylim=(0, max(top * 1.1, 0.02)))
        shares = [share for line in lines for share, _ in line.points]
        ax.xaxis.set_major_locator(FixedLocator(_ticks(shares)))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(False, axis="x")
        sizes = {line.size for line in lines}
        budget = f"budget of {count(sizes.pop())} examples" if len(sizes) == 1 else "budget"
        ax.set_xlabel(f"share of the {budget} spent on SFT")
        ax.set_ylabel("pass@1")
        _bases(made, ax, rows)
        handles = [_draw(made, ax, n, lines, palette) for n in range(len(lines))]
        made.figure.legend(
            handles=handles, loc="outside lower center", handlelength=2.6,
            ncols=COLUMNS if len(handles) > 3 else max(1, len(handles)),
        )  # fmt: skip
    return made.svg


def _bases(made: Drawing, ax: Any, rows: Sequence[Row]) -> None:
    """The base models, their labels above each other."""
    bases = [row for row in of_role(rows, "base") if row.scores]
    heights = [row.scores.first[2] for row in bases if row.scores]
    top = ax.get_ylim()[1]
    places = spread(heights, 0.05 * top, min(heights, default=0))
    for base, height in zip(bases, places, strict=True):
        base_band(made, ax, base, f"{base.model}: " if len(bases) > 1 else "", height)


def _lines(found: Mapping[tuple[str | None, int | None], Sequence[Row]]) -> list[_Line]:
    """A line a method; SFT alone is the right end of each, or a point where it is all there is."""
    lines = []
    for (model, size), ways in found.items():
        placed = [
            (share / size, row) for row in ways if size and (share := _share(row)) is not None
        ]
        alone = [(x, row) for x, row in placed if not row.pft_method]
        methods = dict.fromkeys(row.pft_method for _, row in placed if row.pft_method)
        for method in methods or [None]:
            mine = [(x, row) for x, row in placed if method and row.pft_method == method]
            points = tuple(sorted([*mine, *alone], key=lambda entry: entry[0]))
            lines.append(_Line(model=model, size=size, method=method, points=points))
    return [line for line in lines if line.points]


def _share(row: Row) -> int | None:
    """SFT examples: what was planned, or of a fork what its sweetspot had used."""
    return row.sft_share if row.sft_share is not None else row.sft_data_used


def _draw(made: Drawing, ax: Any, number: int, lines: Sequence[_Line], palette: Palette) -> Line2D:
    """The points of a line with their intervals; its entry for the legend."""
    line = lines[number]
    several = len({(line.model, line.size) for line in lines}) > 1
    colour = palette[line.points[0][1]] if several else MUTED
    shift = min(SHIFT, 0.05 / len(lines)) * (number - (len(lines) - 1) / 2)
    xs = [x + shift for x, _ in line.points]
    ys = [row.scores.first[0] for _, row in line.points if row.scores]
    ax.plot(xs, ys, color=colour, lw=1.4, ls=dashes(line.method), zorder=2)
    for x, (_, row) in zip(xs, line.points, strict=True):
        if row.pft_method or line is _first(lines, line):
            shape = marker(row.pft_method)
            point(made, ax, row, x, palette[row], shape, hollow=False)
    return Line2D(
        [], [], color=colour, lw=1.4, ls=dashes(line.method), marker=marker(line.method), ms=7,
        label=line.words(lines),
    )  # fmt: skip


def _first(lines: Sequence[_Line], line: _Line) -> _Line:
    """The first line of the same budget, which draws the point of SFT alone for all of them."""
    return next(other for other in lines if (other.model, other.size) == (line.model, line.size))


def _ticks(shares: Sequence[float]) -> list[float]:
    """The shares that were tried, the ends first, none closer to another than labels are wide."""
    kept: list[float] = []
    for share in sorted(set(shares), key=lambda x: (x not in (0.0, 1.0), x)):
        if all(abs(share - other) >= 0.035 for other in kept):
            kept.append(share)
    return sorted(kept)
