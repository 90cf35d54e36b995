"""Which model is better than which: paired bootstraps over the prompts that both answered.

Three questions: does a fork beat the sweetspot that it starts from, does it beat SFT on the whole
budget, and do SFT and the reference runs beat the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuning.evaluation.intervals import Interval, paired_difference
from tuning.report.rows import Row

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
    base = next((row for row in rows if row.role == "base"), None)
    whole = next((row for row in rows if row.role == "reference_sft"), None)
    forks = [row for row in rows if row.role == "fork"]
    pairs: list[tuple[Question, Row, Row | None]] = []
    pairs += [("parent", fork, by_name.get(fork.parent or "")) for fork in forks]
    pairs += [("whole_budget", fork, whole) for fork in forks]
    trained = [row for row in rows if row.role in ("sft", "reference_sft", "reference_pt")]
    pairs += [("base", row, base) for row in trained]
    found = (against(question, ours, theirs) for question, ours, theirs in pairs)
    return [comparison for comparison in found if comparison is not None]


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
