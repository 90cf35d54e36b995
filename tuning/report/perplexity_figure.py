"""The figure of SFT: perplexity over examples, the thresholds and the forks that start there."""

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
from tuning.sweetspots.rules import Threshold

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


def perplexity_figure(rows: Sequence[Row], labels: Labels, palette: Palette) -> str | None:
    """Perplexity over SFT examples, with the thresholds and the forks."""
    runs = [row for row in of_role(rows, "sft", "reference_sft") if row.curve]
    if not runs or len(runs) > MOST_LINES:
        return None
    with drawing("perplexity", "Perplexity over SFT examples", 4.6) as made:
        ax = made.axes()
        _perplexity_axes(ax, runs, rows)
        for row in reversed(runs):
            x = [point["data_points_seen"] for point in row.curve]
            y = [point["perplexity"] for point in row.curve]
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
        ends = [(r.curve[-1]["perplexity"], f" {labels.label(r)}", palette[r]) for r in runs]
        end_labels(ax, ends, [r.curve[-1]["data_points_seen"] for r in runs])
        _thresholds(ax, rows, palette)
        _spots(made, ax, rows, labels, palette)
    return made.svg


def _perplexity_axes(ax: Any, runs: Sequence[Row], rows: Sequence[Row]) -> None:
    values = [point["perplexity"] for row in runs for point in row.curve]
    values += [threshold for _, threshold in _lines(rows)]
    low, high = min(values), max(values)
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
    ax.set_ylabel("perplexity on the validation pool")
    ax.set_xlabel("SFT examples consumed, repeats included")
    furthest = max(point["data_points_seen"] for row in runs for point in row.curve)
    ax.set_xlim(0, max(furthest, 1) * 1.15)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(round(v))))
    ax.grid(False, axis="x")
    stepped = next((p for row in runs for p in row.curve if p["step"]), None)
    if stepped and stepped["data_points_seen"]:
        ratio = stepped["data_points_seen"] / stepped["step"]
        top_axis = ax.secondary_xaxis("top", functions=(lambda x: x / ratio, lambda x: x * ratio))
        top_axis.set_xlabel("optimizer steps")
        top_axis.spines["top"].set_visible(False)


def _thinned(ticks: list[float], bottom: float, top: float) -> list[float]:
    """Those ticks of a log axis that are at least a sixteenth of it apart."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) > math.log(top / bottom) / 16:
            kept.append(tick)
    return kept


def _lines(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The thresholds to draw; one that the base met is no result of SFT."""
    spots = [row for row in of_role(rows, "sweetspot") if row.cause != "met_by_base"]
    return [(row, row.rule.value) for row in spots if isinstance(row.rule, Threshold)]


def _thresholds(ax: Any, rows: Sequence[Row], palette: Palette) -> None:
    """A line for each threshold, with its value at the left."""
    lines = _lines(rows)
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


def _spots(made: Drawing, ax: Any, rows: Sequence[Row], labels: Labels, palette: Palette) -> None:
    """Marks on the curve with the examples that were left for the forks."""
    log = ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    marks = [(row, seen) for row in of_role(rows, "sweetspot") if (seen := _seen(row, rows))]
    marks.sort(key=lambda mark: mark[1])
    for number, (row, seen) in enumerate(marks):
        assert row.perplexity is not None
        height = 0.93 - 0.075 * number
        y = share(row.perplexity, bottom, top, log)
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
            [seen], [row.perplexity], "o", ms=8, color=palette[row], mec=CARD, mew=1.5, zorder=6
        )
        after = f"perplexity {row.perplexity:.4g} after {count(seen)} examples"
        made.tip(point, f"{labels.label(row)}: {after}")


def _seen(row: Row, rows: Sequence[Row]) -> int | None:
    """The examples that SFT had consumed at a sweetspot."""
    run = next((r for r in rows if r.run_name == row.parent), None)
    points = [p for p in (run.curve if run else ()) if p["perplexity"] == row.perplexity]
    return int(points[0]["data_points_seen"]) if points else row.sft_data_used


def _fork_words(spot: Row, rows: Sequence[Row]) -> str:
    used = f"{spot.rule.words if spot.rule else ''} after {count(spot.sft_data_used)} examples"
    forks = [row for row in of_role(rows, "fork") if row.parent == spot.run_name]
    if not forks or spot.total_budget is None:
        return used
    left = count(spot.total_budget - (spot.sft_data_used or 0))
    return f"{used}; {left} left for {', '.join(row.method for row in forks)}"
