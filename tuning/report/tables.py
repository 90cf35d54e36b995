"""The tables of the page: results, comparisons, cost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tuning.report.comparisons import MIN_PROMPTS, Comparison
from tuning.report.palette import Palette
from tuning.report.row import WAYS, Cost, Row, is_counted, of_role
from tuning.report.table import count, perplexity, tokens
from tuning.report.words import difference, interval, questions

_GROUPS = {"base": 0, "sft": 0, "sweetspot": 1, "fork": 2, "reference_sft": 3, "reference_pt": 3}


def results(rows: Sequence[Row]) -> str:
    """Every row of results.csv; what has no result is grey and says why."""
    palette = Palette(rows)
    largest = max((row.scores.largest_k for row in rows if row.scores), default=1)
    top = max((row.scores.first[2] for row in rows if row.scores), default=1.0)
    best = _best(rows)
    groups = _groups(rows)
    head = ["perplexity", "SFT<br>examples", "preference<br>examples", "total", "pass@1", ""]
    head += [f"pass@{largest}"] if largest > 1 else []
    lines = []
    for number, row in enumerate(rows):
        new = number > 0 and groups[number - 1] != groups[number]
        classes = [("group", new), ("missing", row.missing), ("best", row.stage_name in best)]
        chosen = " ".join(name for name, applies in classes if applies)
        cells = _cells(row, palette, top, largest)
        lines.append(f'<tr class="{chosen}">{"".join(cells)}</tr>')
    return _table(["model", *head], lines)


def _best(rows: Sequence[Row]) -> set[str]:
    """The stages with the highest score: of all, or of each budget where there are several."""
    scored = [row for row in rows if row.scores]
    if not is_counted(rows):
        return {row.stage_name for row in [max(scored, key=_estimate)]} if scored else set()
    found: dict[tuple[str | None, int | None], Row] = {}
    for row in of_role(scored, *WAYS):
        key = (row.model, row.total_budget)
        found[key] = max(found.get(key, row), row, key=_estimate)
    return {row.stage_name for row in found.values()}


def _groups(rows: Sequence[Row]) -> list[object]:
    """What each row belongs to; where that changes, the table draws a line."""
    if not is_counted(rows):
        return [_GROUPS[row.role] for row in rows]
    found: list[object] = []
    after: tuple[str | None, int | None] = (None, None)
    for row in reversed(rows):
        if row.role in WAYS:
            after = (row.model, row.total_budget)
        found.append((row.model, row.role) if row.role == "base" else after)
    return found[::-1]


def _estimate(row: Row) -> float:
    return row.scores.first[0] if row.scores else 0.0


def _cells(row: Row, palette: Palette, top: float, largest: int) -> list[str]:
    known = [
        _name(row, palette, full=True),
        _cell(perplexity(row.perplexity), unit="from" if row.role in ("fork", "pt") else ""),
        _cell(count(row.sft_data_used)),
        _cell(count(row.pft_data)),
        _cell(count(row.total_data)),
    ]
    width = 3 if largest > 1 else 2
    if row.scores is None:
        why = escape(row.note) or "not evaluated"
        if row.sft_data_used is None or (row.missing and row.pft_data is None):
            return [known[0], f'<td class="why" colspan="{width + 4}">{why}</td>']
        return [*known, f'<td class="why" colspan="{width}">{why}</td>']
    middle, low, high = row.scores.first
    score = _bar(low / top, middle / top, high / top, palette.name(row))
    cells = [*known, _cell(interval(row)), f"<td>{score}</td>"]
    if largest > 1:
        several = row.scores.pass_at_k.get(largest)
        cells.append(_cell(f"{several[0]:.3f}" if several else "–"))
    return cells


def _name(row: Row, palette: Palette, *, full: bool = False) -> str:
    ring = " ring" if row.role == "sweetspot" else ""
    colour = f"background:var(--{palette.name(row)});border-color:var(--{palette.name(row)})"
    return f'<td><span class="dot{ring}" style="{colour}"></span>{escape(row.label)}' + (
        f"<small>{escape(row.run_name)}</small></td>" if full else "</td>"
    )


def _cell(text: str, unit: str = "") -> str:
    before = f'<span class="unit">{unit} </span>' if unit and text != "–" else ""
    return f"<td>{before}{text}</td>"


def _bar(low: float, middle: float, high: float, name: str, zero: float | None = None) -> str:
    """An interval as a small bar; positions are shares of its width."""
    mark = f'<u style="left:{100 * zero:.2f}%"></u>' if zero is not None else ""
    return (
        f'<span class="bar">{mark}<i style="left:{100 * low:.2f}%;'
        f'width:{100 * (high - low):.2f}%;background:var(--{name})"></i>'
        f'<b style="left:{100 * middle:.2f}%;background:var(--{name})"></b></span>'
    )


def comparisons(found: Sequence[Comparison], rows: Sequence[Row]) -> str:
    """Paired differences with intervals and what follows from them."""
    palette = Palette(rows)
    reach = max((max(abs(c.difference.low), abs(c.difference.high)) for c in found), default=1.0)
    reach = max(reach, 1e-9) * 1.05
    lines = []
    for question, title in questions(rows).items():
        mine = [c for c in found if c.question == question]
        if mine:
            lines.append(f'<tr class="title"><td colspan="5">{title}</td></tr>')
            lines += [_compared(c, palette, reach) for c in mine]
    head = ["model", "compared with", "difference in pass@1", "", "verdict"]
    return _table(head, lines, left=(1, 4))


def _compared(c: Comparison, palette: Palette, reach: float) -> str:
    d = c.difference
    low, middle, high = ((value + reach) / (2 * reach) for value in (d.low, d.estimate, d.high))
    bar = ""
    if c.prompts >= MIN_PROMPTS:
        bar = _bar(low, middle, high, palette.name(c.ours), zero=0.5)
    kind = {1: "better", -1: "worse", 0: "none"}[c.sign]
    return (
        f"<tr>{_name(c.ours, palette)}"
        f'<td class="left">{escape(c.theirs.label)}</td>'
        f"<td>{difference(c)}</td><td>{bar}</td>"
        f'<td class="left wrap {kind}">{c.verdict}</td></tr>'
    )


def cost(rows: Sequence[Row]) -> str:
    """What each final model took, the SFT part and the preference part."""
    palette = Palette(rows)
    lines = []
    for row in of_role(rows, "sft", "sweetspot", *WAYS):
        if row.sft_cost is None or row.pft_cost is None:
            continue
        both = Cost(
            tokens=row.sft_cost.tokens + row.pft_cost.tokens,
            seconds=row.sft_cost.seconds + row.pft_cost.seconds,
        )
        parts = (row.sft_cost, row.pft_cost, both)
        cells = [_cell(count(value)) for value in (row.sft_data_used, row.pft_data, row.total_data)]
        cells += [_cell(tokens(part.tokens)) for part in parts]
        cells += [_cell(f"{part.seconds:,.0f}") for part in parts]
        lines.append(f"<tr>{_name(row, palette)}{''.join(cells)}</tr>")
    if not lines:
        return ""
    head = [
        f"{kind}<br>{what}"
        for what in ("examples", "tokens", "seconds")
        for kind in ("SFT", "preference", "all")
    ]
    return _table(["model", *head], lines)


def _table(head: Sequence[str], lines: Sequence[str], left: Sequence[int] = ()) -> str:
    cells = [
        f"<th{' class=left' if number in left else ''}>{text}</th>"
        for number, text in enumerate(head)
    ]
    return (
        f'<div class="sheet"><table><thead><tr>{"".join(cells)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
