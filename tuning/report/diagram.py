"""The chain of runs as a drawing: a box for each model, joined to the one that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tuning.report.formats import count, perplexity
from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.rows import TUNED, Row
from tuning.sweetspots.rules import PERPLEXITY

WIDTH, HEIGHT = 222, 56
ACROSS, DOWN = WIDTH + 38, HEIGHT + 14
MOST_LINES = 24
"""Of boxes; a larger experiment is easier to read in the table."""
MOST_LETTERS = 30
"""Of the second line of a box."""
_CAUSES = {
    "met_by_base": "met by the base model",
    "unreached": "never reached",
    "no_budget_left": "no examples left",
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A run and the place of its box; `line` counts lines of boxes and may be a half."""

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


def chain(rows: Sequence[Row], labels: Labels, palette: Palette) -> str:
    """The runs as boxes, each joined to the one that it starts from; inline SVG.

    "" for more boxes than fit on a page.
    """
    nodes = _placed(rows)
    if not nodes or max(node.line for node in nodes) >= MOST_LINES:
        return ""
    by_name = {node.row.run_name: node for node in nodes}
    joined = [(by_name.get(node.row.parent or ""), node) for node in nodes]
    edges = [_edge(parent, node) for parent, node in joined if parent]
    boxes = [_box(node, labels, palette) for node in nodes]
    width = max(node.x for node in nodes) + WIDTH + 1
    height = max(node.y for node in nodes) + HEIGHT + 1
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" class="chain" '
        f'style="max-width:{width:g}px" aria-label="The chain of runs">'
        f"{''.join(edges)}{''.join(boxes)}</svg>"
    )


def _placed(rows: Sequence[Row]) -> list[Node]:
    """A tree for each base model: a parent in the middle of the runs that start from it."""
    names = {row.run_name for row in rows}
    nodes: list[Node] = []
    line = 0

    def place(row: Row, column: int) -> float:
        nonlocal line
        children = [place(r, column + 1) for r in rows if r.parent == row.run_name]
        if not children:
            line += 1
        middle = (children[0] + children[-1]) / 2 if children else line - 1.0
        nodes.append(Node(row=row, column=column, line=middle))
        return middle

    for row in rows:
        if row.parent not in names:
            place(row, 0)
    return nodes


def _edge(parent: Node, node: Node) -> str:
    x1, y1 = parent.x + WIDTH, parent.y + HEIGHT / 2
    x2, y2 = node.x, node.y + HEIGHT / 2
    middle = (x1 + x2) / 2
    style = ' class="open"' if node.row.missing else ""
    return (
        f'<path d="M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}" '
        f'fill="none"{style}/>'
    )


def _box(node: Node, labels: Labels, palette: Palette) -> str:
    row, x, y = node.row, node.x, node.y
    kind = "missing" if row.missing else "there"
    score = f"{row.scores.first[0]:.3f}" if row.scores else ""
    right = x + WIDTH - 12
    tip = escape(f"{row.run_name}: {row.note or row.state}")
    return (
        f'<g class="node {kind}"><title>{tip}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<rect x="{x:g}" y="{y:g}" width="5" height="{HEIGHT}" rx="2.5" '
        f'style="fill:var(--{palette.name(row)});stroke:none"/>'
        f'<text x="{x + 15:g}" y="{y + 23:g}" class="name">{escape(labels.step(row))}</text>'
        f'<text x="{right:g}" y="{y + 42:g}" class="score" text-anchor="end">{score}</text>'
        f'<text x="{x + 15:g}" y="{y + 42:g}" class="more">{escape(_detail(row))}</text></g>'
    )


def _detail(row: Row) -> str:
    """The second line of a box: the examples of the run, or why it has no result."""
    if row.missing:
        note = _CAUSES.get(row.cause, row.note)
        if row.cause == "unreached" and row.rule and row.best_measured is not None:
            best = "lowest" if row.rule.measure.falls else "highest"
            note += f", {best} {perplexity(row.best_measured)}"
        return note if len(note) <= MOST_LETTERS else f"{note[: MOST_LETTERS - 1]}…"
    if row.role in TUNED:
        return f"+ {count(row.pft_data)} preference"
    if row.role == "base":
        return f"ppl {perplexity(row.perplexity)}" if row.perplexity else ""
    if row.rule and row.rule.measure != PERPLEXITY and row.measured is not None:
        return f"{count(row.sft_data_used)} SFT · {row.rule.measure.title} {row.measured:.3f}"
    return f"{count(row.sft_data_used)} SFT · ppl {perplexity(row.perplexity)}"
