"""What a budget experiment says in words: which split of the examples scored highest.

Only ways to spend the same number of examples on the same base model are ranked against each
other. The headline is that of the first such budget; where there are more, the table has them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuning.report.comparisons import Comparison, base_of
from tuning.report.row import Row, budgets, of_role
from tuning.report.table import count
from tuning.report.words import (
    Answer,
    Finding,
    Ranking,
    estimate,
    findings,
    interval,
    prompts,
    ranked,
)

CARDS = 3
"""More budgets than these are left to the table."""


def budget_answer(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Answer:
    """How a budget should have been split, as far as this experiment can say."""
    found = {key: ways for key, ways in budgets(rows).items() if len(ways) > 1}
    if not found:
        title, text = _without_choice(rows)
        return Answer(title=title, text=text, findings=findings(rows, comparisons))
    (model, size), first = next(iter(found.items()))
    several = len({key[0] for key in budgets(rows)}) > 1
    ranking = ranked(first)
    title = _title(ranking, size)
    text = " ".join(filter(None, (_told(ranking, rows, size), ranking.sentence)))
    if several:
        title = f"{model}: {title[:1].lower()}{title[1:]}"
    if len(found) > 1:
        rest = len(found) - 1
        text += (
            f" That is {model} with {count(size)} examples; "
            + ("the other budget is" if rest == 1 else f"the {rest} other budgets are")
            + " in the table."
        )
    cards = [_card(key, ways, several) for key, ways in list(found.items())[1:]]
    return Answer(
        title=title, text=text,
        findings=(*(cards if len(cards) <= CARDS else ()), *findings(rows, comparisons)),
    )  # fmt: skip


def _title(ranking: Ranking, size: int | None) -> str:
    if not ranking.settled:
        return f"Too few test prompts to say how {count(size)} examples should be split"
    if ranking.ties:
        first, second = (split(row) for row in (ranking.best, ranking.ties[0]))
        return f"No clear winner for {count(size)} examples: {first}, or {second}"
    row = ranking.best
    if row.role == "pt":
        return (
            f"Spend {count(row.sft_share)} of {count(size)} examples on SFT, "
            f"then {count(row.train_size)} on {row.method}"
        )
    if row.role == "fork":
        return f"Spend {count(size)} examples on {split(row)}"
    return f"Spend all {count(size)} examples on {row.method or 'SFT'}"


def split(row: Row) -> str:
    """How a model spent its budget, in few words: `250 on SFT then 750 on DPO`."""
    if row.role == "pt":
        return f"{count(row.sft_share)} on SFT then {count(row.train_size)} on {row.method}"
    if row.role == "fork":
        return f"SFT to {row.spot} then {row.method}"
    return f"all on {row.method or 'SFT'}"


def _told(ranking: Ranking, rows: Sequence[Row], size: int | None) -> str:
    best = ranking.best
    base = base_of(rows, best)
    beside = f"; the base model has {estimate(base):.3f}" if base and base.scores else ""
    ways = len(ranking.compared) + 1
    return (
        f"In this experiment {best.prose} scored highest of {ways} ways to spend {count(size)} "
        f"examples: pass@1 {interval(best)} on {prompts(best)}{beside}."
    )


def _card(key: tuple[str | None, int | None], ways: Sequence[Row], several: bool) -> Finding:
    """The answer of one more budget."""
    model, size = key
    ranking = ranked(ways)
    who = f"{model} with " if several else ""
    if not ranking.settled:
        answer = "too few prompts"
    elif ranking.ties:
        answer = "no clear winner"
    else:
        answer = _share(ranking.best)
    best = ranking.best
    text = f"{best.prose[:1].upper()}{best.prose[1:]} scored highest: pass@1 {interval(best)}. "
    return Finding(
        question=f"How should {who}{count(size)} examples be split?",
        answer=answer,
        text=(text + ranking.sentence).strip(),
    )


def _share(row: Row) -> str:
    """`25% SFT`; of a fork, the sweetspot at which SFT stopped."""
    if row.role == "fork":
        return f"SFT to {row.spot}"
    share = 100 * (row.sft_share or 0) / (row.total_budget or 1)
    return f"{share:.3g}% SFT" if 0 < share < 100 else f"all {row.method or 'SFT'}"


def _without_choice(rows: Sequence[Row]) -> tuple[str, str]:
    """What can be said where there are not two ways to spend one budget."""
    scored = [row for row in rows if row.scores and row.role != "base"]
    if scored:
        best = max(scored, key=estimate)
        return (
            "One part of the answer: what was scored so far",
            f"The highest score is that of {best.prose}: pass@1 {interval(best)}. No two ways of "
            "spending the same budget were scored, so none is advised.",
        )
    trained = [row for row in rows if row.train_size and not row.missing]
    runs = of_role(rows, "sft", "pt", "fork", "reference_sft", "reference_pt")
    if trained:
        return (
            "Nothing has been scored yet",
            f"{len(trained)} of {len(runs)} runs are trained; the table says how each stands.",
        )
    return "Nothing has been scored yet", "The table says of each run how it stands."
