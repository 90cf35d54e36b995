"""The rows as text: results.csv for programs, an aligned table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from tuning.report import before_after
from tuning.report.formats import UNKNOWN, count, interval, perplexity, share, shorten, tokens
from tuning.report.rows import Row, largest_k, part_names
from tuning.sweetspots.rules import brief

COLUMNS = (
    "run_name",
    "stage",
    "pft_method",
    "parent",
    "threshold",
    "perplexity",
    "sft_data_used",
    "pft_data",
    "total_data",
    "pass_at_1",
    "pass_at_1_low",
    "pass_at_1_high",
    "pass_at_k",
    "prompts",
    "samples",
    "train_tokens",
    "train_seconds",
    "total_tokens",
    "total_seconds",
    "config_hash",
    "seed",
    "note",
)
BUDGET_COLUMNS = (
    *COLUMNS[:3],
    "model",
    "total_budget",
    "sft_ratio",
    "annotation_cost",
    *COLUMNS[3:],
)
"""Of experiments that may have several base models and budgets."""
_OF_SEEDS = ("seeds", "prompt_error", "seed_error")
WAY_COLUMNS = (
    *(name for name in BUDGET_COLUMNS if name not in ("config_hash", "seed")),
    *_OF_SEEDS,
)
"""Of ways with several seeds as one: means over the seeds, and the standard errors of pass@1."""
NAME_WIDTH = 46
NOTE_WIDTH = 56


def csv_text(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """results.csv, with a last column for each further measure of the task, and those of what each
    training changed, where it was measured; unknown values are empty.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = part_names(rows)
    changes = before_after.columns(rows)
    writer.writerow([*columns, *parts, *changes])
    for number, row in enumerate(rows):
        values = _values(row) | {name: _part(row, name) for name in parts}
        changed = [values_of[number] for values_of in changes.values()]
        told = [*(values[column] for column in (*columns, *parts)), *changed]
        writer.writerow([_plain(value) for value in told])
    return buffer.getvalue()


def _values(row: Row) -> dict[str, Any]:
    scores = row.scores
    first = scores.first if scores else (None, None, None)
    whole = row.sft_cost + row.pft_cost if row.sft_cost and row.pft_cost else None
    return {
        "run_name": row.run_name,
        "stage": row.role,
        "pft_method": row.pft_method,
        "model": row.model,
        "total_budget": row.total_budget,
        "sft_ratio": row.sft_ratio,
        "annotation_cost": row.annotation_cost,
        "parent": row.parent,
        "threshold": brief(row.rule) if row.rule else None,
        "perplexity": row.perplexity,
        "sft_data_used": row.sft_data_used,
        "pft_data": row.pft_data,
        "total_data": row.total_data,
        "pass_at_1": first[0],
        "pass_at_1_low": first[1],
        "pass_at_1_high": first[2],
        "pass_at_k": scores.pass_at_k[scores.largest_k][0] if scores else None,
        "prompts": scores.prompts if scores else None,
        "samples": scores.samples if scores else None,
        "train_tokens": row.cost.tokens if row.cost else None,
        "train_seconds": row.cost.seconds if row.cost else None,
        "total_tokens": whole.tokens if whole else None,
        "total_seconds": whole.seconds if whole else None,
        "config_hash": row.config_hash,
        "seeds": " ".join(map(str, row.seeds or () if row.seed is None else (row.seed,))),
        "prompt_error": scores.prompt_error if scores else None,
        "seed_error": scores.seed_error if scores else None,
        "seed": row.seed,
        "note": row.note,
    }


def _part(row: Row, name: str) -> float | None:
    return row.scores.parts.get(name) if row.scores else None


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return repr(round(value, 6)) if isinstance(value, float) else str(value)


def terminal_table(rows: Sequence[Row]) -> str:
    """The table for people: numbers under each other, or the reason why there are none."""
    largest, parts = largest_k(rows), part_names(rows)
    header = [
        "run",
        "ppl",
        "SFT",
        "pref",
        "pass@1 [95% interval]",
        f"pass@{largest}",
        *parts,
        "tokens",
        "s",
    ]
    if largest == 1:
        header[5] = ""
    cells = [_cells(row, parts) for row in rows]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = [_line(header, widths), "  ".join("─" * width for width in widths if width)]
    for row, line in zip(rows, cells, strict=True):
        if row.note and row.scores is None:
            known = line[:4] if row.sft_data_used is not None else line[:1]
            lines.append(f"{_line(known, widths)}  {shorten(row.note, NOTE_WIDTH)}")
        else:
            lines.append(_line(line, widths))
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Row, parts: Sequence[str]) -> list[str]:
    scores, cost = row.scores, row.cost
    seeds = f" ×{len(row.seeds)}" if row.seeds else ""
    name = f"{shorten(row.run_name, NAME_WIDTH - len(seeds))}{seeds}"
    first = interval(*scores.first) if scores else UNKNOWN
    several = scores is not None and scores.largest_k > 1
    return [
        name,
        perplexity(row.perplexity),
        count(row.sft_data_used),
        count(row.pft_data),
        first,
        f"{scores.pass_at_k[scores.largest_k][0]:.3f}" if scores and several else "",
        *(share(_part(row, name)) for name in parts),
        tokens(cost.tokens) if cost else UNKNOWN,
        f"{cost.seconds:.0f}" if cost else UNKNOWN,
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    right = [
        f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=False) if width
    ]
    return "  ".join([f"{cells[0]:<{widths[0]}}", *right])
