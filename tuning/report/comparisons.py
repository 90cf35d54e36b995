"""Which model is better than which, on the prompts that both answered and, where several seeds were
trained, seed by seed; corrected for the number of comparisons made together.

Three questions: does preference tuning improve the SFT model that it starts from, is it better than
SFT on the whole budget, and are SFT alone and preference tuning alone better than the base. Only
rows of one base model are compared, and in the second question of one budget. A fourth is asked of
each budget by itself: which of the ways to spend it is best.

A difference has one interval, whatever asks for it: what the differences say about seeds, they say
together. The corrections are those of each question's own comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Literal

import numpy as np

from tuning.evaluation.crossed import LEVEL, Crossed, crossed, holm
from tuning.report.formats import signed
from tuning.report.rows import TUNED, Budget, Row, base_of, budgets, of_role

MIN_PROMPTS = 10
"""With fewer prompts an interval means nothing: of one prompt its width is zero."""

Question = Literal["parent", "whole_budget", "base", "best"]
Pair = tuple[Question, Row, Row]
Names = tuple[str, str]
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
    difference: Crossed
    """Ours minus theirs, with an interval that is not corrected."""
    together: int
    """Comparisons that it is corrected for, itself included."""
    corrected: float
    """Its p-value by Holm's method."""

    @property
    def prompts(self) -> int:
        """Prompts that both answered."""
        return self.difference.prompts

    @property
    def seeds(self) -> int:
        """Pairs of seeds; 1: the interval holds for these two models alone."""
        return self.difference.seeds

    @property
    def conclusive(self) -> bool:
        """Whether there are enough prompts for an interval."""
        return self.prompts >= MIN_PROMPTS

    @property
    def apart(self) -> bool:
        """Whether its own interval excludes zero."""
        return self.conclusive and (self.difference.low > 0 or self.difference.high < 0)

    @property
    def sign(self) -> int:
        """1 or -1 if the difference holds after correction, otherwise 0."""
        if not self.apart or self.corrected >= 1 - LEVEL:
            return 0
        return 1 if self.difference.estimate > 0 else -1

    @property
    def verdict(self) -> str:
        """better, worse, or why neither is shown."""
        if not self.conclusive:
            return "too few prompts to tell"
        if self.apart and not self.sign:
            return f"not after correction for {self.together} comparisons"
        seen = "that these prompts can show" if self.seeds == 1 else "that these seeds can show"
        return {1: "better", -1: "worse", 0: f"no difference {seen}"}[self.sign]

    @property
    def text(self) -> str:
        """`+0.050 [−0.010, +0.110]`, without the interval if there are too few prompts."""
        d = self.difference
        if not self.conclusive:
            return signed(d.estimate)
        return f"{signed(d.estimate)} [{signed(d.low)}, {signed(d.high)}]"


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every comparison of a report."""

    questions: list[Comparison]
    """Those of QUESTIONS, corrected together."""
    rankings: Mapping[Budget, list[Comparison]]
    """All pairs of the ways to spend each budget, the better of a pair first, corrected by budget:
    any of them might have come out best.
    """

    def about(self, question: Question) -> list[Comparison]:
        """The comparisons that answer one of QUESTIONS."""
        return [comparison for comparison in self.questions if comparison.question == question]


def compare(rows: Sequence[Row]) -> Comparisons:
    """Every comparison of two models that were scored on the same prompts."""
    ways = budgets(rows)
    questions, *rankings = weighed([_asked(rows), *map(_ranked, ways.values())])
    return Comparisons(questions=questions, rankings=dict(zip(ways, rankings, strict=True)))


def pass_at_1(row: Row) -> float:
    """pass@1 of a row that has scores."""
    assert row.scores is not None
    return row.scores.first[0]


def _ranked(ways: Sequence[Row]) -> list[Pair]:
    """All pairs of the ways to spend a budget, the better first."""
    placed = sorted(ways, key=pass_at_1, reverse=True)
    return [("best", better, worse) for better, worse in combinations(placed, 2)]


def _asked(rows: Sequence[Row]) -> list[Pair]:
    by_name = {row.run_name: row for row in rows}
    pairs: list[tuple[Question, Row, Row | None]] = []
    pairs += [("parent", row, by_name.get(row.parent or "")) for row in of_role(rows, "fork", "pt")]
    pairs += [("whole_budget", row, _sft_on_all(rows, row)) for row in of_role(rows, *TUNED)]
    alone = of_role(rows, "sft", "reference_sft", "reference_pt")
    pairs += [("base", row, base_of(rows, row)) for row in alone]
    return [(question, ours, theirs) for question, ours, theirs in pairs if theirs]


def _sft_on_all(rows: Sequence[Row], row: Row) -> Row | None:
    """SFT on the row's whole budget, by the same seed if there is such a run."""
    alike = [r for r in of_role(rows, "reference_sft") if r.budget == row.budget]
    return next((r for r in alike if r.seed == row.seed), next(iter(alike), None))


def weighed(families: Sequence[Sequence[Pair]]) -> list[list[Comparison]]:
    """The comparisons of pairs that were scored on the same prompts, each family corrected for its
    own number.
    """
    tables: dict[Names, np.ndarray] = {}
    for _, ours, theirs in chain.from_iterable(families):
        names = _names(ours, theirs)
        seen = names in tables or names[::-1] in tables
        if not seen and (table := _differences(ours, theirs)) is not None:
            tables[names] = table
    found = dict(zip(tables, crossed(list(tables.values())), strict=True))
    found |= {names[::-1]: _reversed(difference) for names, difference in found.items()}
    return [_corrected(family, found) for family in families]


def _corrected(pairs: Sequence[Pair], found: Mapping[Names, Crossed]) -> list[Comparison]:
    kept = [(pair, found[names]) for pair in pairs if (names := _names(*pair[1:])) in found]
    corrected = holm([difference.p for _, difference in kept])
    return [
        Comparison(
            question=question,
            ours=ours,
            theirs=theirs,
            difference=difference,
            together=len(kept),
            corrected=p,
        )
        for ((question, ours, theirs), difference), p in zip(kept, corrected, strict=True)
    ]


def _names(ours: Row, theirs: Row) -> Names:
    return (ours.run_name, theirs.run_name)


def _reversed(d: Crossed) -> Crossed:
    return replace(d, estimate=-d.estimate, low=-d.high, high=-d.low)


def _differences(ours: Row, theirs: Row) -> np.ndarray | None:
    """pass@1 of ours minus theirs, shape (seeds, prompts); None unless both have the same prompts.

    Seeds are paired by their number, and in order where none is common. A base model is the same
    for every seed.
    """
    if ours.scores is None or theirs.scores is None:
        return None
    mine, others = np.array(ours.scores.seeds), np.array(theirs.scores.seeds)
    if not mine.size or mine.shape[1] != others.shape[1]:
        return None
    if "base" in (ours.role, theirs.role):
        return mine - others
    first, second = _seeds_of(ours), _seeds_of(theirs)
    if common := [seed for seed in first if seed in second]:
        mine = mine[[first.index(seed) for seed in common]]
        others = others[[second.index(seed) for seed in common]]
    pairs = min(len(mine), len(others))
    return mine[:pairs] - others[:pairs]


def _seeds_of(row: Row) -> list[int | None]:
    return list(row.seeds) or [row.seed]
