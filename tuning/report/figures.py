"""The figures of the results: score against the split of the budget, pass@k, cost.

Each is an SVG, or None if there is nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from tuning.report.formats import count, interval, seconds, tokens
from tuning.report.labels import Labels
from tuning.report.palette import CARD, INK, MUTED, SERIES, Palette, dashes, marker
from tuning.report.rows import WAYS, Budget, Cost, Row, base_of, budgets, of_role, same_weights
from tuning.report.svg import Drawing, drawing, end_labels, halo, spread

BLUE, GREY = SERIES["sft"][0], SERIES["base"][0]
MOST_LINES, MOST_BARS = 24, 48
"""More than these are left to the tables."""
SHIFT, ALL_SHIFTS = 0.011, 0.05
"""Between lines, so that intervals at the same share do not overlap; from the first to the last."""
COLUMNS = 2
"""Of a legend."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Models at several shares of SFT: of one budget, by one method, or by SFT alone."""

    rows: tuple[Row, ...]
    """By their share."""
    method: str | None
    whole: bool
    """Whether the models spent the whole budget."""

    @property
    def budget(self) -> Budget:
        """The budget that all models of the line belong to."""
        return self.rows[-1].budget

    def words(self, lines: Sequence[_Line]) -> str:
        """The entry of the legend: what tells it from the other lines, and what it is."""
        model, size = self.budget
        parts = [str(model)] if len({line.budget[0] for line in lines}) > 1 else []
        if len({line.budget[1] for line in lines}) > 1:
            parts.append(f"{count(size)} examples")
        if not self.whole:
            kind = "SFT only, the rest of the budget unspent"
        else:
            kind = f"SFT, then {self.method.upper()} on the rest" if self.method else "SFT alone"
        return ": ".join(filter(None, (", ".join(parts), kind)))


def _score(row: Row) -> str:
    """`0.550 [0.500, 0.600]`"""
    return interval(*row.scores.first) if row.scores else "no score"


def _share(row: Row) -> float:
    """The part of the budget spent on SFT: as planned, or of a sweetspot as used."""
    used = row.sft_share if row.sft_share is not None else row.sft_data_used
    price = row.prices[0] if row.prices else 1
    return (used or 0) * price / (row.total_budget or 1)


def share_figure(rows: Sequence[Row], labels: Labels, palette: Palette) -> str | None:
    """pass@1 against the share of SFT; None if fewer than two ways were scored."""
    lines = [*_unspent(rows), *_spent(rows)]
    scored = [row for line in lines for row in line.rows]
    if len(scored) < 2:
        return None
    one = len({line.budget for line in lines}) == 1
    height = 4.6 + 0.22 * math.ceil(len(lines) / COLUMNS)
    with drawing("share", "pass@1 against the share of the budget spent on SFT", height) as made:
        ax = made.axes()
        _share_axes(ax, lines)
        _bases(made, ax, rows)
        handles = [_draw(made, ax, n, lines, labels, palette) for n in range(len(lines))]
        if one:
            _spot_names(ax, scored, palette)
            _whole_names(ax, scored, labels, palette)
        made.figure.legend(
            handles=handles,
            loc="outside lower center",
            handlelength=2.6,
            ncols=COLUMNS if len(handles) > 3 else max(1, len(handles)),
        )
    return made.svg


def _spent(rows: Sequence[Row]) -> list[_Line]:
    """A line for each budget and method; SFT alone is the right end of each, or the only point."""
    lines = []
    for ways in budgets(rows).values():
        placed = sorted((row for row in ways if row.total_budget), key=_share)
        for method in dict.fromkeys(row.pft_method for row in placed if row.pft_method) or [None]:
            mine = tuple(row for row in placed if row.pft_method in (method, None))
            lines.append(_Line(rows=mine, method=method, whole=True))
    return [line for line in lines if line.rows]


def _unspent(rows: Sequence[Row]) -> list[_Line]:
    """From the base over models that saw SFT alone and left examples unspent, a line a budget."""
    spots = [row for row in of_role(rows, "sweetspot") if row.scores and row.total_budget]
    ends = [row for row in of_role(rows, "sft") if row.scores and row.total_budget]
    ends = [row for row in ends if not any(same_weights(spot, row) for spot in spots)]
    found: dict[object, list[Row]] = {}
    for row in sorted([*spots, *ends], key=_share):
        found.setdefault(row.budget, []).append(row)
    for mine in found.values():
        base = base_of(rows, mine[0])
        mine[:0] = [base] if base and base.scores else []
    return [_Line(rows=tuple(mine), method=None, whole=False) for mine in found.values()]


def _share_axes(ax: Any, lines: Sequence[_Line]) -> None:
    scored = [row for line in lines for row in line.rows]
    top = max(row.scores.first[2] for row in scored if row.scores)
    ax.set(xlim=(-0.04, 1.06), ylim=(0, max(top * 1.16, 0.02)))
    planned = [_share(row) for row in scored if row.sft_share is not None]
    ax.xaxis.set_major_locator(FixedLocator(_ticks(planned)))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(False, axis="x")
    sizes = {line.budget[1] for line in lines}
    budget = f"budget of {count(sizes.pop())} examples" if len(sizes) == 1 else "budget"
    ax.set_xlabel(f"share of the {budget} spent on SFT")
    ax.set_ylabel("pass@1")


def _ticks(shares: Sequence[float]) -> list[float]:
    """The planned shares, at least the width of a label apart; without any, quarters."""
    if not set(shares) - {0.0, 1.0}:
        return [0, 0.25, 0.5, 0.75, 1]
    kept: list[float] = []
    for share in sorted(set(shares), key=lambda x: (x not in (0.0, 1.0), x)):
        if all(abs(share - other) >= 0.035 for other in kept):
            kept.append(share)
    return sorted(kept)


def _bases(made: Drawing, ax: Any, rows: Sequence[Row]) -> None:
    """The scores of the base models across the plot, their labels above each other."""
    bases = [row for row in of_role(rows, "base") if row.scores]
    heights = [row.scores.first[2] for row in bases if row.scores]
    places = spread(heights, 0.05 * ax.get_ylim()[1], min(heights, default=0))
    for base, place in zip(bases, places, strict=True):
        assert base.scores is not None
        middle, low, high = base.scores.first
        name = f"{base.model}: base model" if len(bases) > 1 else "base model"
        band = ax.axhspan(low, high, color=GREY, alpha=0.22, lw=0, zorder=1)
        ax.axhline(middle, color=GREY, lw=1.2, zorder=1)
        made.tip(band, f"{name}: {_score(base)}")
        ax.text(
            1.055,
            place,
            f"{name} {middle:.3f}",
            color=MUTED,
            ha="right",
            va="bottom",
            path_effects=halo(),
        )


def _draw(
    made: Drawing, ax: Any, number: int, lines: Sequence[_Line], labels: Labels, palette: Palette
) -> Line2D:
    """The points of a line with their intervals; returns its entry for the legend."""
    line = lines[number]
    several = len({line.budget for line in lines}) > 1
    colour = palette[line.rows[-1]] if several else MUTED if line.whole else BLUE
    step = min(SHIFT, ALL_SHIFTS / len(lines))
    shift = step * (number - (len(lines) - 1) / 2)
    shapes: dict[str, Any] = {"ls": dashes(line.method), "lw": 1.4, "color": colour}
    ax.plot(
        [_share(row) + shift for row in line.rows],
        [row.scores.first[0] for row in line.rows if row.scores],
        zorder=2,
        **shapes,
    )
    shape = marker(line.method) if line.whole else "o"
    for row in line.rows:
        if row.role == "reference_sft" and line is _first(lines, line):
            _point(made, ax, row, _share(row) + shift, marker(None), labels, palette)
        elif row.role not in ("base", "reference_sft"):
            _point(made, ax, row, _share(row) + shift, shape, labels, palette)
    return Line2D(
        [],
        [],
        marker=shape,
        ms=7,
        mfc=colour if line.whole else CARD,
        label=line.words(lines),
        **shapes,
    )


def _first(lines: Sequence[_Line], line: _Line) -> _Line:
    """The first line of the same whole budget, which has the point of SFT alone for all of them."""
    return next(other for other in lines if other.whole and other.budget == line.budget)


def _point(
    made: Drawing, ax: Any, row: Row, x: float, shape: str, labels: Labels, palette: Palette
) -> None:
    """The score of a model with its interval; a ring if it left examples unspent."""
    assert row.scores is not None
    middle, low, high = row.scores.first
    colour, ring = palette[row], row.role not in WAYS
    ax.plot([x, x], [low, high], color=colour, lw=1.6, zorder=4, solid_capstyle="butt")
    (mark,) = ax.plot(
        [x],
        [middle],
        shape,
        ms=8,
        color=colour,
        mfc=CARD if ring else colour,
        mec=colour if ring else CARD,
        mew=1.8 if ring else 1.2,
        zorder=5,
    )
    made.tip(mark, f"{labels.label(row)}: {_score(row)}\n{row.run_name}")


def _spot_names(ax: Any, scored: Sequence[Row], palette: Palette) -> None:
    """The names of the sweetspots along the top, joined to their points by a faint line."""
    spots = {row.rule: row for row in scored if row.rule}
    xs = [_share(row) for row in spots.values()]
    for (rule, row), x, place in zip(spots.items(), xs, spread(xs, 0.075), strict=True):
        ax.text(
            place,
            1.0,
            rule.words,
            transform=ax.get_xaxis_transform(),
            color=palette[row],
            ha="center",
            va="bottom",
            fontweight="bold",
        )
        ax.plot(
            [x, place], [0.95, 0.99], transform=ax.get_xaxis_transform(), color=palette[row], lw=0.8
        )
        ax.axvline(x, ymax=0.95, color=palette[row], lw=0.8, alpha=0.35, zorder=1)


def _whole_names(ax: Any, scored: Sequence[Row], labels: Labels, palette: Palette) -> None:
    """The name of SFT on the whole budget, above its point at the right."""
    for row in of_role(scored, "reference_sft")[:1]:
        assert row.scores is not None
        ax.text(
            1.0,
            row.scores.first[2],
            f"{labels.within_budget().label(row)}\n",
            va="center",
            ha="right",
            color=palette[row],
            fontweight="bold",
            path_effects=halo(),
        )


def pass_at_k_figure(rows: Sequence[Row], labels: Labels, palette: Palette) -> str | None:
    """pass@k over k, a line for each model; None if only one k was measured."""
    scored = [row for row in rows if row.scores and len(row.scores.pass_at_k) > 1]
    final = [row for row in scored if row.role != "sweetspot"]
    if not final or len(final) > MOST_LINES:
        return None
    ks = sorted({k for row in final if row.scores for k in row.scores.pass_at_k})
    height = max(4.4, 0.21 * len(final) + 1.2)
    with drawing("pass-at-k", "pass@k over k", height) as made:
        ax = made.axes()
        _pass_at_k_axes(ax, ks, final)
        ends = []
        for row in final:
            assert row.scores is not None
            values = {k: interval[0] for k, interval in row.scores.pass_at_k.items()}
            (line,) = ax.plot(
                list(values),
                list(values.values()),
                color=palette[row],
                lw=1.8,
                ms=5.5,
                marker="D" if row.role == "reference_sft" else marker(row.pft_method or "dpo"),
                ls=dashes(row.pft_method),
                clip_on=False,
            )
            name, end = labels.label(row), values[max(values)]
            made.tip(line, f"{name}: " + ", ".join(f"@{k} {v:.3f}" for k, v in values.items()))
            ends.append((end, f"  {name}  {end:.3f}", palette[row]))
        end_labels(ax, ends, [row.scores.largest_k for row in final if row.scores])
    return made.svg


def _pass_at_k_axes(ax: Any, ks: Sequence[int], final: Sequence[Row]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(ks[0] * 0.94, ks[-1] * (ks[-1] / ks[0]) ** 0.42)
    best = max(max(v[0] for v in row.scores.pass_at_k.values()) for row in final if row.scores)
    ax.set_ylim(0, min(1.0, max(best * 1.06, 0.02)) if best < 0.94 else 1.0)
    ax.xaxis.set_major_locator(FixedLocator(ks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.spines["bottom"].set_bounds(ks[0], ks[-1])
    ax.grid(False, axis="x")
    ax.set_xlabel("k, answers sampled for each prompt", loc="left")
    ax.set_ylabel("pass@k, at least one of k is right")


def with_cost(rows: Sequence[Row]) -> list[Row]:
    """The final models whose training cost is known; no SFT run that a `pt` run continues."""
    continued = {row.parent for row in of_role(rows, "pt")}
    final = [row for row in of_role(rows, "sft", *WAYS) if row.run_name not in continued]
    return [row for row in final if row.sft_cost and row.pft_cost]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A measure of cost: its title, a model's SFT and preference part, and how it is printed."""

    title: str
    parts: Callable[[Row], tuple[float, float]]
    words: Callable[[float], str]


def cost_figure(rows: Sequence[Row], labels: Labels, palette: Palette) -> str | None:
    """Examples, tokens and seconds of every final model, SFT and preference part stacked."""
    final = with_cost(rows)
    if not final or len(final) > MOST_BARS:
        return None
    devices = sorted({row.device for row in final if row.device})
    device = " and ".join(devices) or "the device"
    panels = [
        _Panel(title="examples", parts=_examples, words=lambda value: count(round(value))),
        _Panel(title="training tokens", parts=lambda row: _parts(row, "tokens"), words=tokens),
        _Panel(title=f"seconds on {device}", parts=lambda r: _parts(r, "seconds"), words=seconds),
    ]
    if any(row.prices for row in final):
        panels[:0] = [_Panel(title="annotation cost", parts=_annotation, words="{:,.4g}".format)]
    height = 0.9 + 0.34 * len(final)
    with drawing("cost", "Examples, tokens and seconds of every model", height) as made:
        for number, panel in enumerate(panels):
            ax = made.axes(1, len(panels), number + 1)
            _bars(made, ax, final, panel, labels, palette)
            names = ["" if number else labels.label(row) for row in final]
            ax.set_yticks(range(len(final)), names, color=INK)
    return made.svg


def _examples(row: Row) -> tuple[float, float]:
    return float(row.sft_data_used or 0), float(row.pft_data or 0)


def _annotation(row: Row) -> tuple[float, float]:
    sft, pft = row.prices or (0.0, 0.0)
    first, second = _examples(row)
    return first * sft, second * pft


def _parts(row: Row, what: str) -> tuple[float, float]:
    costs: tuple[Cost | None, Cost | None] = (row.sft_cost, row.pft_cost)
    first, second = (float(getattr(cost, what)) if cost else 0.0 for cost in costs)
    return first, second


def _bars(
    made: Drawing, ax: Any, rows: Sequence[Row], panel: _Panel, labels: Labels, palette: Palette
) -> None:
    longest = max(sum(panel.parts(row)) for row in rows) or 1
    for y, row in enumerate(rows):
        first, second = panel.parts(row)
        for start, value, colour, kind in (
            (0, first, BLUE, "SFT"),
            (first, second, palette[row], "preference tuning"),
        ):
            if value:
                (bar,) = ax.barh([y], [value], left=[start], height=0.62, color=colour, ec=CARD)
                made.tip(bar, f"{labels.label(row)}, {kind}: {panel.words(value)}")
        both = first + second
        ax.text(both + longest * 0.02, y, panel.words(both), va="center", color=MUTED)
    ax.set_title(panel.title, color=INK, fontweight="bold")
    ax.set_xlim(0, longest * 1.22)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
