"""Which model is better than which: paired bootstraps over the prompts that both answered.

Three questions: does preference tuning improve the SFT model that it starts from, is it better than
SFT on the whole budget, and are SFT alone and preference tuning alone better than the base. Only
rows of one base model are compared, and in the second question of one budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuning.evaluation.intervals import Interval, paired_difference
from tuning.report.formats import signed
from tuning.report.rows import TUNED, Row, base_of, of_role

MIN_PROMPTS = 10
"""With fewer prompts a bootstrap interval means nothing: of one prompt its width is zero."""

Question = Literal["parent", "whole_budget", "base"]
QUESTIONS: dict[Question, str] = {
    "parent": "Does preference tuning improve the SFT model that it starts from?",
    "whole_budget": "Does preference tuning on some or all of a budget beat SFT on all of it?",
    "base": "Do SFT alone and preference tuning alone beat the base model?",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference in pass@1 between two models on the same prompts."""

    question: Question
    ours: Row
    theirs: Row
    difference: Interval
    """Ours minus theirs."""
    prompts: int

    @property
    def conclusive(self) -> bool:
        """Whether there are enough prompts for an interval."""
        return self.prompts >= MIN_PROMPTS

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of zero, otherwise 0."""
        if not self.conclusive:
            return 0
        return int(self.difference.low > 0) - int(self.difference.high < 0)

    @property
    def verdict(self) -> str:
        """better, worse, or why neither is shown."""
        if not self.conclusive:
            return "too few prompts to tell"
        words = {1: "better", -1: "worse", 0: "no difference that these prompts can show"}
        return words[self.sign]

    @property
    def text(self) -> str:
        """`+0.050 [−0.010, +0.110]`, without the interval if there are too few prompts."""
        d = self.difference
        if not self.conclusive:
            return signed(d.estimate)
        return f"{signed(d.estimate)} [{signed(d.low)}, {signed(d.high)}]"


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Every comparison of two models that were scored on the same prompts."""
    by_name = {row.run_name: row for row in rows}
    pairs: list[tuple[Question, Row, Row | None]] = []
    pairs += [("parent", row, by_name.get(row.parent or "")) for row in of_role(rows, "fork", "pt")]
    pairs += [("whole_budget", row, _sft_on_all(rows, row)) for row in of_role(rows, *TUNED)]
    alone = of_role(rows, "sft", "reference_sft", "reference_pt")
    pairs += [("base", row, base_of(rows, row)) for row in alone]
    found = (against(question, ours, theirs) for question, ours, theirs in pairs)
    return [comparison for comparison in found if comparison is not None]


def _sft_on_all(rows: Sequence[Row], row: Row) -> Row | None:
    """SFT on the row's whole budget, by the same seed if there is such a run."""
    alike = [r for r in of_role(rows, "reference_sft") if r.budget == row.budget]
    return next((r for r in alike if r.seed == row.seed), next(iter(alike), None))


def against(question: Question, ours: Row, theirs: Row | None) -> Comparison | None:
    """A comparison, or None unless both were scored on the same prompts."""
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
