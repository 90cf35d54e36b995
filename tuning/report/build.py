"""The report of an experiment: results.csv, report.html and the table for the terminal.

    outputs/reports/{experiment}/results.csv    one row a stage, in the order of the plan
    outputs/reports/{experiment}/report.html    one page that needs nothing else

Reads run directories only. Cheap to import: what draws and computes is imported when needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from tuning.plan import Plan
from tuning.runs import atomic

WIDTH = 100
"""Columns of the words below the table."""


def write_report(
    plan: Plan, home: Path, states: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """Write the report of a plan under `home`; returns the text for the terminal.

    `states` says of each stage how the launcher saw it end, (state, reason); what the run
    directories themselves say is done goes first.
    """
    from tuning.report.budget_words import budget_answer
    from tuning.report.comparisons import compare
    from tuning.report.page import page
    from tuning.report.row import is_counted
    from tuning.report.rows import gather
    from tuning.report.table import csv_text, terminal_table
    from tuning.report.words import answer

    rows = gather(plan, home, states)
    folder = home / "outputs" / "reports" / plan.experiment
    atomic.write_text(folder / "results.csv", csv_text(rows))
    found = compare(rows)
    said = (budget_answer if is_counted(rows) else answer)(rows, found)
    html = page(plan.experiment, plan.about, rows, found, said)
    atomic.write_text(folder / "report.html", html)
    words = textwrap.fill(f"{said.title}. {said.text}", WIDTH)
    return f"{terminal_table(rows)}\n\n{words}\n\nreport: {folder / 'report.html'}"
