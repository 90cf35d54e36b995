"""The tables of the page as plain data: results, comparisons, cost. The templates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.report.comparisons import QUESTIONS, Comparison, Comparisons
from tuning.report.formats import UNKNOWN, count, interval, perplexity, seconds, share, tokens
from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.rows import WAYS, Budget, Row, largest_k, of_role, part_names


@dataclass(frozen=True, kw_only=True)
class Name:
    """The first cell of a line: a mark in the colour of the run, and its names."""

    label: str
    run_name: str
    colour: str
    """The name of a CSS variable."""
    ring: bool
    """Whether the mark is hollow: a sweetspot, which leaves examples unspent."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An interval; positions are shares of the width."""

    low: float
    middle: float
    high: float
    zero: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A line of the results."""

    name: Name
    perplexity: str
    inherited: bool
    """Whether the perplexity is that of the model that this one continues."""
    counts: tuple[str, ...]
    """SFT examples, preference examples, both."""
    score: str
    bar: Bar | None
    several: str
    """pass@k for the largest k."""
    parts: tuple[str, ...]
    """The further measures of the task."""
    why: str
    """Why there is no score."""
    known: bool
    """Whether the perplexity and the counts are known."""
    missing: bool
    best: bool
    group: bool
    """Whether a new group of lines begins."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The table of results."""

    k: int
    """The largest k of pass@k; the table has a column for it if above 1."""
    parts: list[str]
    """The names of the further measures of the task, a column each."""
    lines: list[Result]

    @property
    def shaded(self) -> bool:
        """Whether any line is the best of its budget."""
        return any(line.best for line in self.lines)


def results(rows: Sequence[Row], labels: Labels, palette: Palette) -> Results:
    """A line for each row of results.csv."""
    k = largest_k(rows)
    top = max((row.scores.first[2] for row in rows if row.scores), default=1.0)
    best, groups, parts = _best(rows), _groups(rows), part_names(rows)
    lines = []
    for number, row in enumerate(rows):
        scores = row.scores
        low, middle, high = (scores.first[i] / top for i in (1, 0, 2)) if scores else (0, 0, 0)
        several = scores.pass_at_k.get(k) if scores else None
        line = Result(
            name=name_of(row, labels, palette),
            perplexity=perplexity(row.perplexity),
            inherited=row.role in ("fork", "pt") and row.perplexity is not None,
            counts=_counts(row),
            score=interval(*scores.first) if scores else "",
            bar=Bar(low=low, middle=middle, high=high) if scores else None,
            several=f"{several[0]:.3f}" if several else UNKNOWN,
            parts=tuple(share(scores.parts.get(name) if scores else None) for name in parts),
            why="" if scores else row.note or "not evaluated",
            known=row.sft_data_used is not None and not (row.missing and row.pft_data is None),
            missing=row.missing,
            best=row.stage_name in best,
            group=number > 0 and groups[number - 1] != groups[number],
        )
        lines.append(line)
    return Results(k=k, parts=parts, lines=lines)


def name_of(row: Row, labels: Labels, palette: Palette) -> Name:
    """The first cell of the line of a row."""
    return Name(
        label=labels.label(row),
        run_name=row.run_name,
        colour=palette.name(row),
        ring=row.role == "sweetspot",
    )


def _counts(row: Row) -> tuple[str, ...]:
    return count(row.sft_data_used), count(row.pft_data), count(row.total_data)


def _best(rows: Sequence[Row]) -> set[str]:
    """The stages with the highest score of those that spent the same budget."""
    found: dict[Budget, tuple[float, str]] = {}
    for row in of_role(rows, *WAYS):
        if row.scores:
            mine = (row.scores.first[0], row.stage_name)
            found[row.budget] = max(found.get(row.budget, mine), mine, key=lambda entry: entry[0])
    return {name for _, name in found.values()}


def _groups(rows: Sequence[Row]) -> list[object]:
    """What each row belongs to; the table draws a line between groups.

    A row that spent no budget belongs to the next row that did.
    """
    found: list[object] = []
    after: Budget = (None, None)
    for row in reversed(rows):
        if row.role in WAYS:
            after = row.budget
        part = row.role if row.role in ("base", "sweetspot", "fork") else ""
        found.append((row.model, part) if part == "base" else (after, part))
    return found[::-1]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A line of the comparisons."""

    name: Name
    theirs: str
    difference: str
    bar: Bar | None
    verdict: str
    kind: str
    """better, worse or none."""


def comparisons(
    found: Comparisons, labels: Labels, palette: Palette
) -> list[tuple[str, list[Compared]]]:
    """The lines of each question."""
    ends = [abs(end) for c in found.questions for end in (c.difference.low, c.difference.high)]
    reach = max(*ends, 1e-9) * 1.05 if ends else 1.0
    groups = []
    for question, title in QUESTIONS.items():
        if mine := found.about(question):
            groups.append((title, [_compared(c, reach, labels, palette) for c in mine]))
    return groups


def _compared(c: Comparison, reach: float, labels: Labels, palette: Palette) -> Compared:
    d = c.difference
    low, middle, high = ((value + reach) / (2 * reach) for value in (d.low, d.estimate, d.high))
    return Compared(
        name=name_of(c.ours, labels, palette),
        theirs=labels.label(c.theirs),
        difference=c.text,
        bar=Bar(low=low, middle=middle, high=high, zero=0.5) if c.conclusive else None,
        verdict=c.verdict,
        kind={1: "better", -1: "worse", 0: "none"}[c.sign],
    )


@dataclass(frozen=True, kw_only=True)
class Price:
    """A line of the costs: of SFT, of preference tuning and of both."""

    name: Name
    annotation: str
    """The cost of annotating the examples; "" where they have no price."""
    counts: tuple[str, ...]
    tokens: tuple[str, ...]
    seconds: tuple[str, ...]


def costs(rows: Sequence[Row], labels: Labels, palette: Palette) -> list[Price]:
    """The cost of each model in examples, tokens and seconds."""
    lines = []
    for row in of_role(rows, "sft", "sweetspot", *WAYS):
        if row.sft_cost is None or row.pft_cost is None:
            continue
        parts = (row.sft_cost, row.pft_cost, row.sft_cost + row.pft_cost)
        price = row.annotation_cost
        line = Price(
            name=name_of(row, labels, palette),
            annotation="" if price is None else f"{price:,.6g}",
            counts=_counts(row),
            tokens=tuple(tokens(part.tokens) for part in parts),
            seconds=tuple(seconds(part.seconds) for part in parts),
        )
        lines.append(line)
    return lines
