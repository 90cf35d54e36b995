"""The report of an experiment: results.csv, report.html and the table for the terminal.

    outputs/reports/{experiment}/results.csv    one row a stage, in the order of the plan
    outputs/reports/{experiment}/ways.csv       with several seeds: one row for all seeds of a way
    outputs/reports/{experiment}/report.html    one page that needs no other file

Reads run directories, and usage.json, which launchers write on a cluster. Cheap to import: the
modules that draw and compute are imported when a report is written.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from tuning.plan import Plan
from tuning.runs import atomic

WIDTH = 100
"""Columns of the text below the table."""


def write_report(
    plan: Plan, home: Path, states: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """Write the report of a plan under `home`; returns the text for the terminal.

    `states` has (state, reason) of each stage as the launcher saw it end; a stage that is done in
    its run directories is done.
    """
    from tuning.report.answer import answer
    from tuning.report.comparisons import compare
    from tuning.report.generations import side_by_side
    from tuning.report.labels import Labels
    from tuning.report.page import page
    from tuning.report.palette import Palette
    from tuning.report.read import gather
    from tuning.report.search import searched
    from tuning.report.seeds import united
    from tuning.report.text_table import (
        BUDGET_COLUMNS,
        COLUMNS,
        WAY_COLUMNS,
        csv_text,
        terminal_table,
    )
    from tuning.report.tunings import tunings
    from tuning.report.usage import usage

    rows = gather(plan, home, states)
    folder = home / "outputs" / "reports" / plan.experiment
    several = plan.about.get("kind") in ("budget", "grid")
    columns = BUDGET_COLUMNS if several else COLUMNS
    atomic.write_text(folder / "results.csv", csv_text(rows, columns))
    ways = united(rows)
    if len(ways) < len(rows):
        atomic.write_text(folder / "ways.csv", csv_text(ways, WAY_COLUMNS))
    labels, comparisons = Labels.of(ways), compare(ways)
    summary = answer(ways, comparisons, labels)
    used = usage(folder)
    tuned = tunings(plan, home)
    answers = side_by_side(plan, home, rows, Labels.of(rows), Palette(rows))
    found = searched(plan, home)
    html = page(
        plan.experiment,
        plan.about,
        ways,
        comparisons,
        summary,
        labels,
        used,
        tuned,
        answers,
        runs=rows,
        search=found,
    )
    atomic.write_text(folder / "report.html", html)
    text = textwrap.fill(f"{summary.title}. {summary.text}", WIDTH)
    text += f"\n\n{textwrap.fill(found.text, WIDTH)}" if found else ""
    return f"{terminal_table(ways)}\n\n{text}\n\nreport: {folder / 'report.html'}"
