"""The trials of a search as an SVG: memory against speed, the Pareto frontier, the limit, and the
winner. No library: the file is read by browsers and put into the report as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tuning.autotune.observation import Observation, latest
from tuning.autotune.score import LIMIT, Scorer
from tuning.autotune.space import Candidate

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50
FAR = 4.0
"""A limit of more than so many times the most memory of a trial is not in the picture."""
_GREY, _BLUE, _GREEN, _RED = "#888888", "#4477aa", "#228833", "#cc3311"


def drawn(
    observations: Sequence[Observation], scorer: Scorer, winner: Candidate | None
) -> str | None:
    """The picture; None if nothing ran."""
    ran = [o for o in latest(observations).values() if o.ok and o.peak_bytes]
    if not ran:
        return None
    return _Picture(ran, scorer, winner).svg()


def frontier(ran: Sequence[Observation]) -> list[Observation]:
    """Those that none beats in both memory and speed, from the least memory on."""
    found: list[Observation] = []
    for o in sorted(ran, key=lambda o: (o.peak_bytes or 0, -(o.tokens_per_second or 0))):
        if not found or (o.tokens_per_second or 0) > (found[-1].tokens_per_second or 0):
            found.append(o)
    return found


class _Picture:
    """Scales and marks."""

    def __init__(
        self, ran: Sequence[Observation], scorer: Scorer, winner: Candidate | None
    ) -> None:
        self.ran, self.scorer, self.winner = ran, scorer, winner
        most = max(o.peak_bytes or 0 for o in ran)
        self.unit, self.name = _unit(most)
        self.limit = LIMIT * scorer.capacity / self.unit
        largest = most / self.unit
        self.is_far = self.limit > FAR * largest
        self.widest = largest * FAR / 2 if self.is_far else max(largest, self.limit) * 1.08
        self.fastest = max(o.tokens_per_second or 0.0 for o in ran) * 1.1 or 1.0

    def svg(self) -> str:
        """The whole file."""
        parts = [*self._axes(), *self._limit(), *self._frontier()]
        parts += [part for o in self.ran for part in self._point(o)]
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11" '
            'role="img" aria-label="memory and speed of the trials">'
        )
        ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        return "\n".join([head, ground, *parts, "</svg>"]) + "\n"

    def _memory(self, o: Observation) -> float:
        return (o.peak_bytes or 0) / self.unit

    def _x(self, memory: float) -> float:
        return LEFT + memory / self.widest * (WIDTH - LEFT - RIGHT)

    def _y(self, speed: float) -> float:
        return HEIGHT - BOTTOM - speed / self.fastest * (HEIGHT - TOP - BOTTOM)

    def _axes(self) -> list[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = [
            f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="black"/>',
            _text(WIDTH / 2, HEIGHT - 12, f"peak memory of a device ({self.name})", "middle"),
            f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
            "tokens a second</text>",
        ]
        for memory in ticks(self.widest):
            parts.append(_text(self._x(memory), bottom + 16, f"{memory:,g}", "middle"))
        for speed in ticks(self.fastest):
            parts.append(_text(LEFT - 6, self._y(speed) + 4, f"{speed:,g}", "end"))
        return parts

    def _limit(self) -> list[str]:
        size, name = _unit(self.scorer.capacity)
        label = f"limit, {LIMIT:.0%} of {self.scorer.capacity / size:,.1f} {name}"
        if self.is_far:
            return [_text(WIDTH - RIGHT, TOP + 10, f"{label}, is far to the right", "end", _RED)]
        x = self._x(self.limit)
        return [
            f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{_RED}" stroke-dasharray="4 3"/>',
            _text(x - 4, TOP + 10, label, "end", _RED),
        ]

    def _frontier(self) -> list[str]:
        points = [
            f"{self._x(self._memory(o)):.1f},{self._y(o.tokens_per_second or 0):.1f}"
            for o in frontier(self.ran)
        ]
        line = f'<polyline points="{" ".join(points)}" fill="none" stroke="{_GREY}"/>'
        return [line] if len(points) > 1 else []

    def _point(self, o: Observation) -> list[str]:
        x, y = self._x(self._memory(o)), self._y(o.tokens_per_second or 0)
        wins = o.candidate == self.winner
        color = _GREEN if wins else _BLUE if self.scorer.safe(o) else _RED
        end = x > WIDTH * 0.7
        label = f"{o.candidate}{' (chosen)' if wins else ''}"
        return [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if wins else 4}" fill="{color}">'
            f"<title>{escape(label)}</title></circle>",
            _text(x + (-8 if end else 8), y + 4, label, "end" if end else "start", color),
        ]


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most`, at most six."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    return [step * n for n in range(int(most / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, color: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )


def _unit(most: float) -> tuple[float, str]:
    return (2**30, "GiB") if most >= 2**30 else (2**20, "MiB")
