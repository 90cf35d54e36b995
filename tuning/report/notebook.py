"""Experiments for notebooks: read once, then tables and figures that show outside the page.

    found = notebook.experiment(site.home(), measure="pass@k")
    print(found.table())
    HTML(found.during_sft())

Reads run directories, as the report does; an experiment that has not ended shows what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tuning.plan import Plan
from tuning.report.figures import pass_at_k_figure, share_figure
from tuning.report.labels import Labels
from tuning.report.palette import COLOURS, Palette
from tuning.report.read import gather
from tuning.report.rows import Row, of_role
from tuning.report.sft_figure import measures_of, sft_figure
from tuning.report.text_table import terminal_table
from tuning.runs.atomic import read_object
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import FORMAT
from tuning.sweetspots.rules import PERPLEXITY, Measure, parse

MEASURES = ("perplexity", "pass@k")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment and its results."""

    plan: Plan
    rows: list[Row]
    of_pass_at_k: bool
    """Whether the sweetspots of interest are those of pass@k, not of perplexity."""

    @cached_property
    def _names(self) -> tuple[Labels, Palette]:
        return Labels.of(self.rows), Palette(self.rows)

    @property
    def measures(self) -> list[Measure]:
        """What the sweetspots of interest are defined by."""
        return measures_of(self.rows) if self.of_pass_at_k else [PERPLEXITY]

    def table(self) -> str:
        """Every model with its score, as text."""
        return terminal_table(self.rows)

    def sweetspots(self) -> list[dict[str, Any]]:
        """Each sweetspot of interest: its label, the examples that SFT had used, the value of its
        measure then, pass@1 on the test prompts, and that of each fork by its method; None for what
        there is not.
        """
        spots = [row for row in of_role(self.rows, "sweetspot") if row.rule]
        return [
            {
                "sweetspot": spot.rule.label,
                "sft_examples": spot.sft_data_used,
                "measured": spot.measured,
                "pass_at_1": _score(spot),
                **{
                    str(fork.pft_method): _score(fork)
                    for fork in of_role(self.rows, "fork")
                    if fork.parent == spot.run_name
                },
            }
            for spot in spots
            if spot.rule and spot.rule.measure in self.measures
        ]

    def during_sft(self) -> str:
        """HTML: the measures over the examples of SFT, with the sweetspots."""
        drawn = (sft_figure(self.rows, *self._names, measure) for measure in self.measures)
        return _standing_alone(*drawn)

    def budget(self) -> str:
        """HTML: the score of each way to spend the budget."""
        return _standing_alone(share_figure(self.rows, *self._names))

    def pass_at_k(self) -> str:
        """HTML: pass@k of each model over k."""
        return _standing_alone(pass_at_k_figure(self.rows, *self._names))


def experiment(home: Path, name: str | None = None, measure: str = "perplexity") -> Experiment:
    """An experiment under a TUNING_HOME by its name, or the newest that has a sweetspot of a
    measure, `perplexity` or `pass@k`; UserError where there is none.
    """
    of_pass_at_k = choose("measure", measure, MEASURES) == "pass@k"
    folder = home / "outputs" / "reports"
    paths = sorted(folder.glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    written = {path.parent.name: read_object(path) or {} for path in paths}
    if name is not None:
        plan = Plan.from_json(written[choose("experiment", name, written)])
        return _read(plan, home, of_pass_at_k)
    for value in reversed(written.values()):
        if value.get("format") == FORMAT:
            plan = Plan.from_json(value)
            labels = [stage.sweetspot for stage in plan.stages if stage.sweetspot]
            if any((parse(label).measure != PERPLEXITY) == of_pass_at_k for label in labels):
                return _read(plan, home, of_pass_at_k)
    script = "passk_pipeline.py" if of_pass_at_k else "ppl_pipeline.py"
    raise UserError(
        f"no experiment under {folder} has a sweetspot of {measure}; run python "
        f"tuning/training/{script}, or set TUNING_HOME."
    )


def _read(plan: Plan, home: Path, of_pass_at_k: bool) -> Experiment:
    return Experiment(plan=plan, rows=gather(plan, home), of_pass_at_k=of_pass_at_k)


def _score(row: Row) -> float | None:
    return row.scores.first[0] if row.scores else None


def _standing_alone(*figures: str | None) -> str:
    """Figures on light paper, with the colours that the page else defines."""
    colours = ";".join(f"--{name}:{light}" for name, (light, _) in COLOURS.items())
    drawn = "".join(svg for svg in figures if svg) or "nothing to draw yet"
    return f'<div style="{colours};background:var(--card);max-width:60em">{drawn}</div>'
