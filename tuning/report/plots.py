"""The figures of the results: score against the split of the budget, pass@k, cost. Each is an SVG,
or None where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from tuning.report.palette import CARD, INK, MUTED, SERIES, Palette, dashes, marker
from tuning.report.row import WAYS, Cost, Row, is_counted, of_role, same_weights
from tuning.report.svg import Drawing, drawing, end_labels, halo, spread
from tuning.report.table import count, tokens

BLUE, GREY = SERIES["sft"][0], SERIES["base"][0]
MOST_LINES, MOST_BARS = 24, 48
"""What a figure of a grid can hold; beyond that the tables tell more."""


def score(row: Row) -> str:
    """`0.550 [0.500, 0.600]`"""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*row.scores.first) if row.scores else "no score"


def score_figure(rows: Sequence[Row], budget: int | None) -> str | None:
    """pass@1 against the share of the budget that SFT took."""
    scored = [row for row in rows if row.scores and row.sft_data_used is not None]
    if not budget or len(scored) < 2:
        return None
    palette = Palette(rows)
    with drawing("score", "pass@1 against the share of the budget spent on SFT", 5.0) as made:
        ax = made.axes()
        top = max(row.scores.first[2] for row in scored if row.scores)
        ax.set(xlim=(-0.04, 1.06), ylim=(0, max(top * 1.16, 0.02)))
        ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(False, axis="x")
        ax.set_xlabel(f"share of the budget of {count(budget)} examples spent on SFT")
        ax.set_ylabel("pass@1")
        for base in of_role(scored, "base")[:1]:
            base_band(made, ax, base)
        handles = _sft_only(made, ax, scored, budget, palette)
        handles += _whole_budget(made, ax, scored, budget, palette)
        _spot_labels(ax, scored, budget, palette)
        made.figure.legend(
            handles=handles, loc="outside lower center", handlelength=2.6,
            ncols=2 if len(handles) > 3 else max(1, len(handles)),
        )  # fmt: skip
    return made.svg


def base_band(
    made: Drawing, ax: Any, base: Row, name: str = "", label_at: float | None = None
) -> None:
    """The score of a base as a line with its interval, across the plot; its label stands above,
    unless it is to stand at another height.
    """
    assert base.scores is not None
    middle, low, high = base.scores.first
    band = ax.axhspan(low, high, color=GREY, alpha=0.22, lw=0, zorder=1)
    ax.axhline(middle, color=GREY, lw=1.2, zorder=1)
    made.tip(band, f"{name}base model: {score(base)}")
    ax.text(
        1.055, high if label_at is None else label_at, f"{name}base model {middle:.3f}",
        color=MUTED, ha="right", va="bottom", path_effects=halo(),
    )  # fmt: skip


def point(
    made: Drawing, ax: Any, row: Row, x: float, colour: str, shape: str, *, hollow: bool
) -> None:
    """The score of a model with its interval."""
    assert row.scores is not None
    middle, low, high = row.scores.first
    ax.plot([x, x], [low, high], color=colour, lw=1.6, zorder=4, solid_capstyle="butt")
    (mark,) = ax.plot(
        [x], [middle], shape, ms=8, color=colour, mfc=CARD if hollow else colour,
        mec=colour if hollow else CARD, mew=1.8 if hollow else 1.2, zorder=5,
    )  # fmt: skip
    made.tip(mark, f"{row.label}: {score(row)}\n{row.run_name}")


def _sft_only(
    made: Drawing, ax: Any, scored: Sequence[Row], budget: int, palette: Palette
) -> list[Line2D]:
    """Models that saw SFT alone and left the rest of the budget unspent."""
    spots = of_role(scored, "sweetspot")
    ends = [
        row for row in of_role(scored, "sft") if not any(same_weights(spot, row) for spot in spots)
    ]
    points = sorted([*spots, *ends], key=lambda row: row.sft_data_used or 0)
    line = [*of_role(scored, "base"), *points]
    if not points:
        return []
    ax.plot(
        [(row.sft_data_used or 0) / budget for row in line],
        [row.scores.first[0] for row in line if row.scores], color=BLUE, lw=1.3, zorder=2,
    )  # fmt: skip
    for row in points:
        point(made, ax, row, (row.sft_data_used or 0) / budget, palette[row], "o", hollow=True)
    name = "SFT only, the rest of the budget unspent"
    return [Line2D([], [], color=BLUE, lw=1.3, marker="o", mfc=CARD, ms=7, label=name)]


def _whole_budget(
    made: Drawing, ax: Any, scored: Sequence[Row], budget: int, palette: Palette
) -> list[Line2D]:
    """A line a method: from preference tuning alone over the forks to SFT alone."""
    whole = of_role(scored, "reference_sft")
    tuned = of_role(scored, "reference_pt", "fork")
    methods = list(dict.fromkeys(row.pft_method for row in tuned))
    handles = []
    for number, method in enumerate(methods):
        shift = 0.011 * (number + 1)
        mine = [row for row in tuned if row.pft_method == method]
        mine.sort(key=lambda row: row.sft_data_used or 0)
        xs = [(row.sft_data_used or 0) / budget + shift for row in mine]
        line = [(x, row) for x, row in zip(xs, mine, strict=True)] + [(1.0, row) for row in whole]
        ax.plot(
            [x for x, _ in line], [row.scores.first[0] for _, row in line if row.scores],
            color=MUTED, lw=1.2, ls=dashes(method), zorder=2,
        )  # fmt: skip
        for x, row in zip(xs, mine, strict=True):
            point(made, ax, row, x, palette[row], marker(method), hollow=False)
        handles.append(_handle(method))
    for row in whole:
        point(made, ax, row, 1.0, palette[row], "D", hollow=False)
        assert row.scores is not None
        ax.text(
            1.0, row.scores.first[2], f"{row.label}\n", color=palette[row], ha="right",
            va="center", fontweight="bold", path_effects=halo(),
        )  # fmt: skip
    return handles


def _handle(method: str | None) -> Line2D:
    return Line2D(
        [], [], color=MUTED, lw=1.2, ls=dashes(method), marker=marker(method), ms=7,
        label=f"SFT, then {(method or '').upper()} on the rest",
    )  # fmt: skip


def _spot_labels(ax: Any, scored: Sequence[Row], budget: int, palette: Palette) -> None:
    """The names of the sweetspots along the top, joined to their points by a faint line."""
    spots: dict[str | None, Row] = {}
    for row in of_role(scored, "sweetspot", "fork"):
        spots.setdefault(row.threshold, row)
    xs = [(row.sft_data_used or 0) / budget for row in spots.values()]
    for row, x, place in zip(spots.values(), xs, spread(xs, 0.075), strict=True):
        ax.text(
            place, 1.0, row.spot, transform=ax.get_xaxis_transform(), color=palette[row],
            ha="center", va="bottom", fontweight="bold",
        )  # fmt: skip
        ax.plot(
            [x, place], [0.95, 0.99], transform=ax.get_xaxis_transform(), color=palette[row], lw=0.8
        )
        ax.axvline(x, ymax=0.95, color=palette[row], lw=0.8, alpha=0.35, zorder=1)


def pass_at_k_figure(rows: Sequence[Row]) -> str | None:
    """pass@k over k, a line a model; None where only one k was measured."""
    scored = [row for row in rows if row.scores and len(row.scores.pass_at_k) > 1]
    final = [row for row in scored if row.role != "sweetspot"]
    if not final or (is_counted(rows) and len(final) > MOST_LINES):
        return None
    palette = Palette(rows)
    ks = sorted({k for row in final if row.scores for k in row.scores.pass_at_k})
    height = max(4.4, 0.21 * len(final) + 1.2)
    with drawing("pass-at-k", "pass@k over k", height) as made:
        ax = made.axes()
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
        labels = []
        for row in final:
            assert row.scores is not None
            values = {k: interval[0] for k, interval in row.scores.pass_at_k.items()}
            (line,) = ax.plot(
                list(values), list(values.values()), color=palette[row], lw=1.8, ms=5.5,
                marker="D" if row.role == "reference_sft" else marker(row.pft_method or "dpo"),
                ls=dashes(row.pft_method), clip_on=False,
            )  # fmt: skip
            made.tip(line, f"{row.label}: " + ", ".join(f"@{k} {v:.3f}" for k, v in values.items()))
            end = values[max(values)]
            labels.append((end, f"  {row.label}  {end:.3f}", palette[row]))
        end_labels(ax, labels, [max(row.scores.pass_at_k) for row in final if row.scores])
    return made.svg


def with_cost(rows: Sequence[Row]) -> list[Row]:
    """The final models whose training is known; of a budget experiment, those that spent one."""
    roles = WAYS if is_counted(rows) else ("sft", *WAYS)
    return [row for row in of_role(rows, *roles) if row.sft_cost and row.pft_cost]


def cost_figure(rows: Sequence[Row]) -> str | None:
    """Examples, tokens and seconds of every final model, SFT and preference part stacked."""
    final = with_cost(rows)
    if not final or (is_counted(rows) and len(final) > MOST_BARS):
        return None
    palette = Palette(rows)
    devices = sorted({row.device for row in final if row.device})
    panels = [
        ("examples", lambda row: (row.sft_data_used or 0, row.pft_data or 0), count),
        ("training tokens", lambda row: _parts(row, "tokens"), tokens),
        (f"seconds on {' and '.join(devices) or 'the device'}", lambda row: _parts(row, "seconds"),
         lambda value: f"{value:,.0f}"),
    ]  # fmt: skip
    with drawing(
        "cost", "Examples, tokens and seconds of every model", 0.9 + 0.34 * len(final)
    ) as made:
        for number, (title, parts, words) in enumerate(panels):
            ax = made.axes(1, len(panels), number + 1)
            _bars(made, ax, final, parts, words, palette)
            ax.set_title(title, color=INK, fontweight="bold")
            ax.set_yticks(range(len(final)), [row.label if not number else "" for row in final])
            if not number:
                for text in ax.get_yticklabels():
                    text.set_color(INK)
    return made.svg


def _parts(row: Row, what: str) -> tuple[float, float]:
    costs: tuple[Cost | None, Cost | None] = (row.sft_cost, row.pft_cost)
    first, second = (float(getattr(cost, what)) if cost else 0.0 for cost in costs)
    return first, second


def _bars(
    made: Drawing, ax: Any, rows: Sequence[Row], parts: Any, words: Any, palette: Palette
) -> None:
    longest = max(sum(parts(row)) for row in rows) or 1
    for y, row in enumerate(rows):
        first, second = parts(row)
        for start, value, colour, kind in (
            (0, first, BLUE, "SFT"),
            (first, second, palette[row], "preference tuning"),
        ):
            if value:
                (bar,) = ax.barh([y], [value], left=[start], height=0.62, color=colour, ec=CARD)
                made.tip(bar, f"{row.label}, {kind}: {words(value)}")
        ax.text(first + second + longest * 0.02, y, words(first + second), va="center", color=MUTED)
    ax.set_xlim(0, longest * 1.22)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
