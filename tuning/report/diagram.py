"""The chain of runs as a drawing: base, SFT and the references, sweetspots, forks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tuning.report.palette import Palette
from tuning.report.row import Row, is_counted, of_role
from tuning.report.table import count, perplexity

WIDTH, HEIGHT = 222, 56
ACROSS, DOWN = WIDTH + 38, HEIGHT + 14
MOST = 24
"""Boxes; a larger grid is better read in the table."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A run and the place of its box; `line` counts rows of boxes and may be a half."""

    row: Row
    column: int
    line: float

    @property
    def x(self) -> float:
        """Left edge."""
        return self.column * ACROSS + 1

    @property
    def y(self) -> float:
        """Upper edge."""
        return self.line * DOWN + 1


def chain(rows: Sequence[Row]) -> str:
    """The runs as boxes, each joined to the one that it starts from; inline SVG.

    "" for more boxes than a page can hold.
    """
    if is_counted(rows) and len(rows) > MOST:
        return ""
    palette = Palette(rows)
    nodes = _placed_by_parent(rows) if is_counted(rows) else _placed(rows)
    by_name = {node.row.run_name: node for node in nodes}
    joined = [(by_name.get(node.row.parent or ""), node) for node in nodes]
    lines = [_edge(above, node) for above, node in joined if above]
    boxes = [_box(node, palette) for node in nodes]
    width = max(node.x for node in nodes) + WIDTH + 1
    height = max(node.y for node in nodes) + HEIGHT + 1
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" class="chain" '
        f'style="max-width:{width:g}px" aria-label="The chain of runs">'
        f"{''.join(lines)}{''.join(boxes)}</svg>"
    )


def _placed(rows: Sequence[Row]) -> list[Node]:
    """Forks below each other, every parent in the middle of what it has made."""
    nodes: list[Node] = []
    spot_lines: list[float] = []
    line = 0
    for spot in of_role(rows, "sweetspot"):
        forks = [row for row in of_role(rows, "fork") if row.threshold == spot.threshold]
        nodes += [Node(row=fork, column=3, line=line + i) for i, fork in enumerate(forks)]
        spot_lines.append(line + max(0, len(forks) - 1) / 2)
        nodes.append(Node(row=spot, column=2, line=spot_lines[-1]))
        line += max(1, len(forks))
    middle = (spot_lines[0] + spot_lines[-1]) / 2 if spot_lines else 0.0
    second = of_role(rows, "sft", "reference_sft", "reference_pt")
    nodes += [Node(row=row, column=1, line=middle + i) for i, row in enumerate(second)]
    nodes += [Node(row=row, column=0, line=middle) for row in of_role(rows, "base")]
    return nodes


def _placed_by_parent(rows: Sequence[Row]) -> list[Node]:
    """A tree a base model: below each other what continues one model, beside it."""
    names = {row.run_name for row in rows}
    nodes: list[Node] = []
    line = 0

    def place(row: Row, column: int) -> float:
        nonlocal line
        below = [place(r, column + 1) for r in rows if r.parent == row.run_name]
        if not below:
            line += 1
        at = (below[0] + below[-1]) / 2 if below else line - 1.0
        nodes.append(Node(row=row, column=column, line=at))
        return at

    for row in rows:
        if row.parent not in names:
            place(row, 0)
    return nodes


def _edge(above: Node, node: Node) -> str:
    x1, y1 = above.x + WIDTH, above.y + HEIGHT / 2
    x2, y2 = node.x, node.y + HEIGHT / 2
    middle = (x1 + x2) / 2
    style = ' class="open"' if node.row.missing else ""
    return (
        f'<path d="M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}" '
        f'fill="none"{style}/>'
    )


def _box(node: Node, palette: Palette) -> str:
    row, x, y = node.row, node.x, node.y
    kind = "missing" if row.missing else "there"
    score = f"{row.scores.first[0]:.3f}" if row.scores else ""
    right = x + WIDTH - 12
    label = _title(row).replace("patience ", "")
    tip = escape(f"{row.run_name}: {row.note or row.state}")
    return (
        f'<g class="node {kind}"><title>{tip}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<rect x="{x:g}" y="{y:g}" width="5" height="{HEIGHT}" rx="2.5" '
        f'style="fill:var(--{palette.name(row)});stroke:none"/>'
        f'<text x="{x + 15:g}" y="{y + 23:g}" class="name">{escape(label)}</text>'
        f'<text x="{right:g}" y="{y + 42:g}" class="score" text-anchor="end">{score}</text>'
        f'<text x="{x + 15:g}" y="{y + 42:g}" class="more">{escape(_detail(row))}</text></g>'
    )


def _title(row: Row) -> str:
    """The name of a box, which stands beside what it starts from."""
    if not row.counted:
        return row.label
    if row.role == "base":
        return row.model or row.label
    return ", ".join(filter(None, (row.step, row.which_seed)))


def _detail(row: Row) -> str:
    """The second line of a box: what went in, or why there is nothing."""
    if row.missing:
        note = row.note.removeprefix("perplexity ")
        return note if len(note) <= 30 else f"{note[:29]}…"
    if row.role in ("fork", "pt", "reference_pt"):
        return f"+ {count(row.pft_data)} preference"
    if row.role == "base":
        return f"ppl {perplexity(row.perplexity)}" if row.perplexity else ""
    return f"{count(row.sft_data_used)} SFT · ppl {perplexity(row.perplexity)}"
