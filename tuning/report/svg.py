"""Matplotlib figures as inline SVG: text stays text in the page's font, colours become its CSS
variables, ids are unique within the page, and the same data give the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuning.report.palette import CARD, GRID, INK, MUTED, with_variables

WIDTH = 10.0
"""Inches: 720 units of the drawing, about its width in pixels on the page."""
_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "figure.facecolor": "none",
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": INK,
}


class Drawing:
    """A figure being drawn; `svg` is set when the `drawing()` block ends."""

    def __init__(self, name: str, title: str, figure: Figure) -> None:
        self.name = name
        self.title = title
        self.figure = figure
        self.svg = ""
        self._tips: list[str] = []

    def axes(self, *position: int, **options: Any) -> Axes:
        """A new plot in the figure."""
        return self.figure.add_subplot(*position, **options)

    def tip(self, artist: Artist, text: str) -> None:
        """Set the tooltip of an artist."""
        artist.set_gid(f"tip-{len(self._tips)}")
        self._tips.append(text)

    def finish(self) -> None:
        """Turn the figure into SVG."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        self.svg = self._inline(buffer.getvalue())

    def _inline(self, text: str) -> str:
        svg = text[text.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
        svg = svg.replace("xlink:href", "href")
        svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(
            r"font: (?:(\d+|bold) )?([\d.]+px) [^;\"]*",
            lambda m: f"font-size: {m[2]}" + ("; font-weight: 600" if m[1] else ""),
            svg,
        )
        for number, tip in enumerate(self._tips):
            mark = f'<g id="{self.name}-tip-{number}">'
            svg = svg.replace(mark, f"{mark}<title>{html.escape(tip)}</title>")
        size = re.search(r'viewBox="[^"]*"', svg)
        head = f'<svg {size[0] if size else ""} role="img" aria-label="{html.escape(self.title)}">'
        svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
        return with_variables("\n".join(line.rstrip() for line in svg.splitlines()))


@contextmanager
def drawing(name: str, title: str, height: float) -> Iterator[Drawing]:
    """A figure of `height` inches; `name` is the prefix of its ids."""
    settings: Any = _RC | {"svg.hashsalt": f"tuning-{name}"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        made = Drawing(name, title, figure)
        yield made
        made.finish()


def spread(
    wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Positions as near as possible to the wanted ones, at least `gap` apart, in their order and
    between `low` and `high`, if they have room there.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []

    def within(centre: float, size: int) -> tuple[float, int]:
        half = (size - 1) / 2 * gap
        return max(low + half, min(high - half, centre)), size

    for index in order:
        groups.append(within(wanted[index], 1))
        while len(groups) > 1 and _touch(groups[-2], groups[-1], gap):
            (right, n), (left, m) = groups.pop(), groups.pop()
            groups.append(within((left * m + right * n) / (m + n), m + n))
    placed = [centre + (i - (size - 1) / 2) * gap for centre, size in groups for i in range(size)]
    result = [0.0] * len(wanted)
    for index, place in zip(order, placed, strict=True):
        result[index] = place
    return result


def _touch(left: tuple[float, int], right: tuple[float, int], gap: float) -> bool:
    return right[0] - left[0] < gap * (left[1] + right[1]) / 2 - 1e-9


def share(value: float, bottom: float, top: float, log: bool) -> float:
    """The position of a value on an axis, from 0 to 1."""
    if log:
        return math.log(value / bottom) / math.log(top / bottom)
    return (value - bottom) / (top - bottom)


def end_labels(ax: Any, labels: Sequence[tuple[float, str, str]], xs: Sequence[float]) -> None:
    """Texts at the right ends of lines, without overlaps; `labels` are (y, text, colour)."""
    bottom, top = ax.get_ylim()
    log = ax.get_yscale() == "log"
    inches = ax.figure.get_size_inches()[1] * 0.8
    gap = 0.185 / inches
    places = spread([share(y, bottom, top, log) for y, _, _ in labels], gap, gap / 2, 1.0)
    for (_, text, colour), x, place in zip(labels, xs, places, strict=True):
        ax.text(
            x,
            place,
            text,
            color=colour,
            va="center",
            fontweight="bold",
            transform=ax.get_xaxis_transform(),
            path_effects=halo(),
            clip_on=False,
            zorder=7,
        )


def halo() -> list[Any]:
    """A rim in the colour of the card, which keeps text readable over lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground=CARD)]
