"""Which model is better than which: paired bootstraps over the prompts that both answered.

Three questions: does preference tuning beat the SFT model that it starts from, does it beat SFT on
the whole budget, and do SFT and the reference runs beat the base. Like is compared with like: rows
of one base model, and where it is about a budget, of one budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuning.evaluation.intervals import Interval, paired_difference
from tuning.report.row import Row

MIN_PROMPTS = 10
"""With fewer the bootstrap's interval is no interval: of one prompt it has no width at all."""

Question = Literal["parent", "whole_budget", "base"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference in pass@1 of a model and another on the same prompts."""

    question: Question
    ours: Row
    theirs: Row
    difference: Interval
    prompts: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, otherwise 0."""
        if self.prompts < MIN_PROMPTS:
            return 0
        return int(self.difference.low > 0) - int(self.difference.high < 0)

    @property
    def verdict(self) -> str:
        """better, worse, or why neither can be said."""
        if self.prompts < MIN_PROMPTS:
            return "too few prompts to tell"
        words = {1: "better", -1: "worse", 0: "no difference that these prompts can show"}
        return words[self.sign]


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Every comparison for which both sides were scored on the same prompts."""
    by_name = {row.run_name: row for row in rows}
    tuned = [row for row in rows if row.role in ("fork", "pt")]
    alone = [row for row in rows if row.role == "reference_pt" and row.counted]
    pairs: list[tuple[Question, Row, Row | None]] = []
    pairs += [("parent", row, by_name.get(row.parent or "")) for row in tuned]
    pairs += [("whole_budget", row, _whole(rows, row)) for row in (*tuned, *alone)]
    trained = [row for row in rows if row.role in ("sft", "reference_sft", "reference_pt")]
    pairs += [("base", row, base_of(rows, row)) for row in trained]
    found = (against(question, ours, theirs) for question, ours, theirs in pairs)
    return [comparison for comparison in found if comparison is not None]


def base_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The base model that a model was made from."""
    return next((r for r in rows if r.role == "base" and r.model == row.model), None)


def _whole(rows: Sequence[Row], row: Row) -> Row | None:
    """SFT of the same base model on the same budget, by the same seed if there is such a run."""
    alike = [
        r
        for r in rows
        if r.role == "reference_sft" and (r.model, r.total_budget) == (row.model, row.total_budget)
    ]
    return next((r for r in alike if r.seed == row.seed), next(iter(alike), None))


def against(question: Question, ours: Row, theirs: Row | None) -> Comparison | None:
    """A comparison, or None where the two were not scored on the same prompts."""
    if theirs is None or ours.scores is None or theirs.scores is None:
        return None
    if not ours.scores.correct or len(ours.scores.correct) != len(theirs.scores.correct):
        return None
    return Comparison(
        question=question,
        ours=ours,
        theirs=theirs,
        difference=paired_difference(ours.scores.per_prompt, theirs.scores.per_prompt),
        prompts=ours.scores.prompts,
    )


def about(comparisons: Sequence[Comparison], question: Question) -> list[Comparison]:
    """The comparisons that answer one question."""
    return [comparison for comparison in comparisons if comparison.question == question]
