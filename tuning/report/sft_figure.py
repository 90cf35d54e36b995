"""The figures of SFT: perplexity, or pass@k, over examples, with the thresholds and the forks that
start there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tuning.report.formats import count
from tuning.report.labels import Labels
from tuning.report.palette import CARD, Palette
from tuning.report.rows import Row, of_role
from tuning.report.svg import Drawing, drawing, end_labels, halo, share, spread
from tuning.sweetspots.rules import PERPLEXITY, Measure, Threshold

TICKS = (
    1,
    1.1,
    1.2,
    1.3,
    1.4,
    1.5,
    1.7,
    2,
    2.5,
    3,
    4,
    5,
    6,
    8,
    10,
    15,
    20,
    30,
    50,
    100,
    200,
    500,
    1000,
    2000,
    5000,
    10_000,
    50_000,
    100_000,
)
MOST_LINES = 8
"""More than these are left to the tables."""


def measures_of(rows: Sequence[Row]) -> list[Measure]:
    """What sweetspots were defined by beside perplexity."""
    rules = (row.rule for row in of_role(rows, "sweetspot") if row.rule)
    return [m for m in dict.fromkeys(rule.measure for rule in rules) if m != PERPLEXITY]


def sft_figure(
    rows: Sequence[Row], labels: Labels, palette: Palette, measure: Measure = PERPLEXITY
) -> str | None:
    """A measure over SFT examples, with the thresholds and the forks."""
    title = measure.title
    runs = [row for row in of_role(rows, "sft", "reference_sft") if row.curves.get(title)]
    if not runs or len(runs) > MOST_LINES:
        return None
    shown = f"{title[:1].upper()}{title[1:]} over SFT examples"
    with drawing(title.replace("@", "-at-"), shown, 4.6) as made:
        ax = made.axes()
        _axes(ax, runs, rows, measure)
        for row in reversed(runs):
            x = [point["data_points_seen"] for point in row.curves[title]]
            y = [point[title] for point in row.curves[title]]
            whole = row.role == "reference_sft"
            (line,) = ax.plot(
                x,
                y,
                color=palette[row],
                lw=1.4 if whole else 2.4,
                ls=(0, (4, 2)) if whole else "-",
                zorder=3,
            )
            made.tip(line, f"{labels.label(row)}: {row.run_name}")
            _band(ax, row, title, palette)
        ends = [(r.curves[title][-1], f" {labels.label(r)}", palette[r]) for r in runs]
        end_labels(
            ax,
            [(point[title], name, colour) for point, name, colour in ends],
            [point["data_points_seen"] for point, *_ in ends],
        )
        _thresholds(ax, rows, palette, measure)
        _spots(made, ax, rows, labels, palette, measure)
    return made.svg


def _band(ax: Any, row: Row, title: str, palette: Palette) -> None:
    """The interval of each measurement, where it has one."""
    points = [point for point in row.curves[title] if f"{title}_low" in point]
    if points:
        ax.fill_between(
            [point["data_points_seen"] for point in points],
            [point[f"{title}_low"] for point in points],
            [point[f"{title}_high"] for point in points],
            color=palette[row],
            alpha=0.15,
            lw=0,
            zorder=2,
        )


def _axes(ax: Any, runs: Sequence[Row], rows: Sequence[Row], measure: Measure) -> None:
    title = measure.title
    points = [point for row in runs for point in row.curves[title]]
    values = [point[title] for point in points]
    values += [threshold for _, threshold in _lines(rows, measure)]
    low, high = min(values), max(values)
    if measure == PERPLEXITY:
        _perplexity_scale(ax, low, high)
        ax.set_ylabel("perplexity on the validation pool")
    else:
        ax.set_ylim(0, min(1.0, high * 1.25 or 1.0))
        ax.set_ylabel(f"{title} on problems of the validation pool")
    ax.set_xlabel("SFT examples consumed, repeats included")
    furthest = max(point["data_points_seen"] for point in points)
    ax.set_xlim(0, max(furthest, 1) * 1.15)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(round(v))))
    ax.grid(False, axis="x")
    stepped = next((p for p in points if p["step"]), None)
    if stepped and stepped["data_points_seen"]:
        ratio = stepped["data_points_seen"] / stepped["step"]
        top_axis = ax.secondary_xaxis("top", functions=(lambda x: x / ratio, lambda x: x * ratio))
        top_axis.set_xlabel("optimizer steps")
        top_axis.spines["top"].set_visible(False)


def _perplexity_scale(ax: Any, low: float, high: float) -> None:
    if high / low > 4:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.09, high * 1.12)
    else:
        room = (high - low or 1.0) * 0.08
        ax.set_ylim(low - room, high + room)
    bottom, top = ax.get_ylim()
    if high / low > 4:
        ticks = _thinned([tick for tick in TICKS if bottom <= tick <= top], bottom, top)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _thinned(ticks: list[float], bottom: float, top: float) -> list[float]:
    """Those ticks of a log axis that are at least a sixteenth of it apart."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) > math.log(top / bottom) / 16:
            kept.append(tick)
    return kept


def _spots_of(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """The sweetspots of a measure; one that the base met is no result of SFT."""
    spots = (row for row in of_role(rows, "sweetspot") if row.cause != "met_by_base")
    return [row for row in spots if row.rule and row.rule.measure == measure]


def _lines(rows: Sequence[Row], measure: Measure) -> list[tuple[Row, float]]:
    """The thresholds to draw."""
    spots = _spots_of(rows, measure)
    return [(row, row.rule.value) for row in spots if isinstance(row.rule, Threshold)]


def _thresholds(ax: Any, rows: Sequence[Row], palette: Palette, measure: Measure) -> None:
    """A line for each threshold, with its value at the left."""
    lines = _lines(rows, measure)
    log = ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    at = [share(threshold, bottom, top, log) for _, threshold in lines]
    for (row, threshold), place in zip(lines, spread(at, 0.055), strict=True):
        assert row.rule is not None
        reached = row.sft_data_used is not None
        ax.axhline(threshold, color=palette[row], lw=1, ls="-" if reached else (0, (2, 3)))
        name = f"{row.rule.setting} not reached" if row.cause == "unreached" else row.rule.setting
        ax.text(
            0.008,
            place,
            name,
            transform=ax.transAxes,
            color=palette[row],
            fontweight="bold",
            va="center",
            path_effects=halo(),
            zorder=5,
        )


def _spots(
    made: Drawing,
    ax: Any,
    rows: Sequence[Row],
    labels: Labels,
    palette: Palette,
    measure: Measure,
) -> None:
    """Marks on the curve with the examples that were left for the forks."""
    log = ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    marks = [(row, seen) for row in _spots_of(rows, measure) if (seen := _seen(row, rows))]
    marks.sort(key=lambda mark: mark[1])
    for number, (row, seen) in enumerate(marks):
        if row.measured is None:
            continue
        height = 0.93 - 0.075 * number
        y = share(row.measured, bottom, top, log)
        ax.plot(
            [seen, seen],
            [y, height],
            transform=ax.get_xaxis_transform(),
            color=palette[row],
            lw=0.9,
        )
        ax.text(
            seen,
            height,
            f" {_fork_words(row, rows)}",
            transform=ax.get_xaxis_transform(),
            va="center",
            path_effects=halo(),
            zorder=5,
        )
        (point,) = ax.plot(
            [seen], [row.measured], "o", ms=8, color=palette[row], mec=CARD, mew=1.5, zorder=6
        )
        after = f"{measure.title} {row.measured:.4g} after {count(seen)} examples"
        made.tip(point, f"{labels.label(row)}: {after}")


def _seen(row: Row, rows: Sequence[Row]) -> int | None:
    """The examples that SFT had consumed at a sweetspot."""
    run = next((r for r in rows if r.run_name == row.parent), None)
    title = row.rule.measure.title if row.rule else ""
    points = [p for p in (run.curves.get(title, ()) if run else ()) if p[title] == row.measured]
    return int(points[0]["data_points_seen"]) if points else row.sft_data_used


def _fork_words(spot: Row, rows: Sequence[Row]) -> str:
    used = f"{spot.rule.words if spot.rule else ''} after {count(spot.sft_data_used)} examples"
    forks = [row for row in of_role(rows, "fork") if row.parent == spot.run_name]
    if not forks or spot.total_budget is None:
        return used
    left = count(spot.total_budget - (spot.sft_data_used or 0))
    return f"{used}; {left} left for {', '.join(row.method for row in forks)}"
