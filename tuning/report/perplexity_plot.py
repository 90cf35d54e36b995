"""The figure of SFT: perplexity over examples, the thresholds that it met and what forked there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tuning.report.palette import CARD, Palette
from tuning.report.row import Row, is_counted, of_role
from tuning.report.svg import Drawing, drawing, end_labels, halo, share, spread
from tuning.report.table import count

TICKS = (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500,
         1000, 2000, 5000, 10_000, 50_000, 100_000)  # fmt: skip
MOST_LINES = 8
"""What the figure of a grid can hold."""


def perplexity_figure(rows: Sequence[Row]) -> str | None:
    """Perplexity over SFT examples, with the thresholds and the forks."""
    runs = [row for row in of_role(rows, "sft", "reference_sft") if row.curve]
    if not runs or (is_counted(rows) and len(runs) > MOST_LINES):
        return None
    palette = Palette(rows)
    with drawing("perplexity", "Perplexity over SFT examples", 4.6) as made:
        ax = made.axes()
        _perplexity_axes(ax, runs, rows)
        for row in reversed(runs):
            x = [point["data_points_seen"] for point in row.curve]
            y = [point["perplexity"] for point in row.curve]
            whole = row.role == "reference_sft"
            (line,) = ax.plot(
                x, y, color=palette[row], lw=1.4 if whole else 2.4,
                ls=(0, (4, 2)) if whole else "-", zorder=3,
            )  # fmt: skip
            made.tip(line, f"{row.label}: {row.run_name}")
        end_labels(
            ax, [(r.curve[-1]["perplexity"], f" {r.label}", palette[r]) for r in runs],
            [r.curve[-1]["data_points_seen"] for r in runs],
        )  # fmt: skip
        _thresholds(made, ax, rows, palette)
    return made.svg


def _perplexity_axes(ax: Any, runs: Sequence[Row], rows: Sequence[Row]) -> None:
    values = [point["perplexity"] for row in runs for point in row.curve]
    values += [_value(row) for row in of_role(rows, "sweetspot") if _draws_line(row)]
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


def _value(row: Row) -> float:
    """The threshold as a number; of a patience rule, nan."""
    return float(row.threshold) if row.threshold and "@" not in row.threshold else math.nan


def _draws_line(row: Row) -> bool:
    """A threshold has a line, unless the base met it and it says nothing about SFT."""
    return not math.isnan(_value(row)) and "met by the base" not in row.note


def _thresholds(made: Drawing, ax: Any, rows: Sequence[Row], palette: Palette) -> None:
    """Lines with their values at the left; marks on the curve with what was left for the forks."""
    lines = [row for row in of_role(rows, "sweetspot") if _draws_line(row)]
    log = ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    at = [share(_value(row), bottom, top, log) for row in lines]
    for row, place in zip(lines, spread(at, 0.055), strict=True):
        reached = row.sft_data_used is not None
        ax.axhline(_value(row), color=palette[row], lw=1, ls="-" if reached else (0, (2, 3)))
        words = row.threshold if reached or not row.note else f"{row.threshold} not reached"
        ax.text(
            0.008, place, words, transform=ax.transAxes, color=palette[row], fontweight="bold",
            va="center", path_effects=halo(), zorder=5,
        )  # fmt: skip
    marks = [(row, seen) for row in of_role(rows, "sweetspot") if (seen := _seen(row, rows))]
    marks.sort(key=lambda mark: mark[1])
    for number, (row, seen) in enumerate(marks):
        assert row.perplexity is not None
        height = 0.93 - 0.075 * number
        y = share(row.perplexity, bottom, top, log)
        ax.plot(
            [seen, seen], [y, height], transform=ax.get_xaxis_transform(),
            color=palette[row], lw=0.9,
        )  # fmt: skip
        ax.text(
            seen, height, f" {_fork_words(row, rows)}", transform=ax.get_xaxis_transform(),
            va="center", path_effects=halo(), zorder=5,
        )  # fmt: skip
        (point,) = ax.plot(
            [seen], [row.perplexity], "o", ms=8, color=palette[row], mec=CARD, mew=1.5, zorder=6
        )
        made.tip(
            point, f"{row.label}: perplexity {row.perplexity:.4g} after {count(seen)} examples"
        )


def _seen(row: Row, rows: Sequence[Row]) -> int | None:
    """Where on the curve of its run a sweetspot lies, in examples consumed."""
    run = next((r for r in rows if r.run_name == row.parent), None)
    points = [p for p in (run.curve if run else ()) if p["perplexity"] == row.perplexity]
    return int(points[0]["data_points_seen"]) if points else row.sft_data_used


def _fork_words(row: Row, rows: Sequence[Row]) -> str:
    methods = [r.pft_method.upper() for r in _forks_of(row, rows) if r.pft_method]
    used = f"{row.spot} after {count(row.sft_data_used)} examples"
    if not methods or row.total_budget is None:
        return used
    left = count(row.total_budget - (row.sft_data_used or 0))
    return f"{used}; {left} left for {', '.join(methods)}"


def _forks_of(spot: Row, rows: Sequence[Row]) -> list[Row]:
    return [row for row in of_role(rows, "fork") if row.threshold == spot.threshold]
