"""What the numbers say, in words: made by rules from the rows, and no more than they carry.

A difference is called one only where the 95% interval of the paired comparison leaves out zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.report.comparisons import MIN_PROMPTS, Comparison, Question, about, against
from tuning.report.row import Row, is_counted, of_role
from tuning.report.table import count, perplexity


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A question, the short answer and a sentence."""

    question: str
    answer: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The top of the page: a title, a paragraph, and the findings behind it."""

    title: str
    text: str
    findings: tuple[Finding, ...]


def estimate(row: Row) -> float:
    """pass@1 of a row that has a score."""
    assert row.scores is not None
    return row.scores.first[0]


def interval(row: Row) -> str:
    """`0.550 [0.500, 0.600]`"""
    assert row.scores is not None
    return "{:.3f} [{:.3f}, {:.3f}]".format(*row.scores.first)


def difference(comparison: Comparison) -> str:
    """`+0.050 [-0.010, +0.110]`, or without the interval where there are too few prompts."""
    d = comparison.difference
    if comparison.prompts < MIN_PROMPTS:
        return _signed(d.estimate)
    return f"{_signed(d.estimate)} [{_signed(d.low)}, {_signed(d.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def questions(rows: Sequence[Row]) -> dict[Question, str]:
    """What the comparisons of an experiment answer."""
    if is_counted(rows):
        return {
            "parent": "Does preference tuning improve the SFT model that it continues?",
            "whole_budget": "Does preference tuning on some or all of a budget beat SFT on all?",
            "base": "Do runs of one method alone beat the base?",
        }
    return {
        "parent": "Does a fork beat the sweetspot that it starts from?",
        "whole_budget": "Does a fork beat SFT on the whole budget?",
        "base": "Do SFT and the reference runs beat the base?",
    }


def findings(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> tuple[Finding, ...]:
    """The questions that comparisons answer, each with a short answer and a sentence."""
    asked = questions(rows)
    kind = "model" if is_counted(rows) else "fork"
    found = [
        Finding(question=asked[question], answer=_of(mine), text=_told(mine, kind))
        for question in ("parent", "whole_budget")
        if (mine := about(comparisons, question))
    ]
    sft = _about_sft(comparisons)
    return tuple([*found, sft] if sft else found)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best of several ways, and how the others compare with it, from near to far."""

    best: Row
    compared: list[Comparison]

    @property
    def ties(self) -> list[Row]:
        """What cannot be told from the best."""
        return [c.theirs for c in self.compared if c.sign <= 0]

    @property
    def settled(self) -> bool:
        """Whether there are prompts enough to say anything."""
        assert self.best.scores is not None
        return self.best.scores.prompts >= MIN_PROMPTS

    @property
    def sentence(self) -> str:
        """What follows for the order; "" where there is nothing to say."""
        if self.ties:
            return (
                f"On these prompts it cannot be told from "
                f"{listed([row.prose for row in self.ties])}, so the order among them is not a "
                "result."
            )
        if self.compared and self.settled:
            closest = self.compared[0]
            behind = difference(closest).replace("+", "")
            return f"Next is {closest.theirs.prose}, {behind} behind it."
        return ""


def ranked(ways: Sequence[Row]) -> Ranking:
    """Ways to spend one budget, which were scored on the same prompts."""
    best, *others = sorted(ways, key=estimate, reverse=True)
    return Ranking(
        best=best, compared=[c for other in others if (c := against("parent", best, other))]
    )


def prompts(row: Row) -> str:
    """`200 test prompts`"""
    assert row.scores is not None
    return f"{row.scores.prompts:,} test prompt{'s' if row.scores.prompts > 1 else ''}"


def answer(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Answer:
    """How this budget should have been spent, as far as this experiment can say."""
    ways = [row for row in of_role(rows, "fork", "reference_sft", "reference_pt") if row.scores]
    title, text = _decision(rows, ways) if len(ways) > 1 else _without_choice(rows, comparisons)
    return Answer(title=title, text=text, findings=findings(rows, comparisons))


def _decision(rows: Sequence[Row], ways: Sequence[Row]) -> tuple[str, str]:
    """The best of at least two ways to spend the whole budget, and whether it stands out."""
    ranking = ranked(ways)
    best, ties = ranking.best, ranking.ties
    if not ranking.settled:
        title = f"Too few test prompts to say how {_budget(best)} should be spent"
    elif ties:
        first, second = (_way(row).replace(", then", " then") for row in (best, ties[0]))
        title = f"No clear winner: {first}, or {second}"
    else:
        title = f"Spend {_spent(best)}"
    text = (
        f"In this experiment {best.prose} scored highest of {len(ways)} ways to spend the budget: "
        f"pass@1 {interval(best)} on {prompts(best)}{_from_base(rows)}."
    )
    return title, " ".join(filter(None, (text, ranking.sentence)))


def _without_choice(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """What can be said where there are not two ways to spend the budget."""
    sft = next(iter(of_role(rows, "sft")), None)
    scored = [row for row in rows if row.scores and row.role != "base"]
    if scored:
        best = max(scored, key=estimate)
        versus = [c for c in about(comparisons, "base") if c.ours.role == "sft"]
        text = f"The highest score is that of {best.prose}: pass@1 {interval(best)}"
        text += f"{_from_base(rows)}. "
        text += "No two ways of spending the whole budget were scored, so none is advised."
        if versus and versus[0].sign > 0:
            theirs, ours = estimate(versus[0].theirs), estimate(versus[0].ours)
            return f"SFT lifts pass@1 from {theirs:.3f} to {ours:.3f}", text
        return "One part of the answer: what was scored so far", text
    if sft is not None and sft.perplexity is not None:
        text = f"SFT used {count(sft.sft_data_used)} examples. {_reached(rows)}"
        return (
            f"SFT brought perplexity to {perplexity(sft.perplexity)}; nothing is scored yet",
            text,
        )
    return "Nothing has been scored yet", "The table says of each run how it stands."


def _reached(rows: Sequence[Row]) -> str:
    spots = of_role(rows, "sweetspot")
    reached = [row.spot for row in spots if row.sft_data_used is not None]
    if not spots:
        return ""
    return f"It reached {len(reached)} of {len(spots)} sweetspots" + (
        f": {listed(reached)}." if reached else "."
    )


def _about_sft(comparisons: Sequence[Comparison]) -> Finding | None:
    mine = [c for c in about(comparisons, "base") if c.ours.role in ("sft", "reference_sft")]
    if not mine:
        return None
    first, on = mine[0], ""
    if first.ours.counted:
        first = max((c for c in mine if c.ours.model == first.ours.model), key=_size)
    else:
        on = f" on {count(first.ours.sft_data_used)} examples"
    text = {
        1: f"{first.ours.prose}{on} is better than the base on the same prompts: "
        f"{difference(first)}.",
        -1: f"{first.ours.prose} is worse than the base on the same prompts: {difference(first)}.",
        0: f"{_cap(first.verdict)}: {difference(first)}.",
    }[first.sign]
    return Finding(
        question="What did SFT do for the base?",
        answer=_signed(first.difference.estimate),
        text=text,
    )


def _size(comparison: Comparison) -> int:
    return comparison.ours.train_size or 0


def _of(mine: Sequence[Comparison]) -> str:
    better = sum(c.sign > 0 for c in mine)
    return f"{better} of {len(mine)}"


def _told(mine: Sequence[Comparison], kind: str) -> str:
    """One sentence for what is better, what is worse, and what cannot be said."""
    if mine[0].prompts < MIN_PROMPTS:
        return f"With {mine[0].prompts} prompts nothing can be said."
    parts = []
    up, down = [c for c in mine if c.sign > 0], [c for c in mine if c.sign < 0]
    if up:
        parts.append(f"{_cap(_named(up, kind))} {_is(up)} better.")
    if down:
        parts.append(f"{_cap(_named(down, kind))} {_is(down)} worse.")
    same = len(mine) - len(up) - len(down)
    if same:
        which = "The other" if up or down else "The"
        others = f"{which} {kind} differs" if same == 1 else f"{which} {same} {kind}s differ"
        parts.append(f"{others} by less than these prompts can show.")
    return " ".join(parts)


def _named(mine: Sequence[Comparison], kind: str) -> str:
    if len(mine) > 3:
        return f"{len(mine)} {kind}s"
    return listed([f"{c.ours.prose} ({_signed(c.difference.estimate)})" for c in mine])


def _is(mine: Sequence[Comparison]) -> str:
    return "is" if len(mine) == 1 else "are"


def _way(row: Row) -> str:
    """How a model spent the budget."""
    method = (row.pft_method or "").upper()
    if row.role == "reference_sft":
        return "all on SFT"
    if row.role == "reference_pt":
        return f"all on {method}"
    return f"SFT to {row.spot.replace('ppl', 'perplexity')}, then {method}"


def _spent(row: Row) -> str:
    """What to do with the budget: `all 3,000 examples on SFT`."""
    size = f"{count(row.total_budget)} examples" if row.total_budget else "of the budget"
    if row.role == "fork":
        return f"the budget on {_way(row)}"
    return f"all {size} on {_way(row).removeprefix('all on ')}"


def _budget(row: Row) -> str:
    return f"the {count(row.total_budget)} examples" if row.total_budget else "the budget"


def _from_base(rows: Sequence[Row]) -> str:
    base = next(iter(of_role(rows, "base")), None)
    return f"; the base model has {estimate(base):.3f}" if base and base.scores else ""


def listed(words: Sequence[str]) -> str:
    """`a, b and c`; of more than four, the first three."""
    if len(words) > 4:
        words = [*words[:3], f"{len(words) - 3} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
