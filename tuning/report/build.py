"""The report of an experiment: results.csv, report.html and the table for the terminal.

    outputs/reports/{experiment}/results.csv    one row a stage, in the order of the plan
    outputs/reports/{experiment}/report.html    one page that needs nothing else

Reads run directories only. Cheap to import: what draws and computes is imported when needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuning.runs import atomic
from tuning.runs.stages import Plan


def write_report(
    plan: Plan, home: Path, states: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """Write the report of a plan under `home`; returns the text for the terminal.

    `states` says of each stage how the launcher saw it end, (state, reason); what the run
    directories themselves say is done goes first.
    """
    from tuning.report.rows import gather
    from tuning.report.table import csv_text, terminal_table

    rows = gather(plan, home, states)
    folder = home / "outputs" / "reports" / plan.experiment
    atomic.write_text(folder / "results.csv", csv_text(rows))
    return f"{terminal_table(rows)}\n\nresults: {folder / 'results.csv'}"
