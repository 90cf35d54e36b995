"""The answer of an experiment in sentences: made by rules from the rows and their comparisons.

Only ways to spend the same number of examples on the same base model are ranked against each other,
and a difference is reported only if it holds at 95% after correction for their number. The headline
belongs to the first budget; others have a card each, or are left to the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuning.report.comparisons import (
    MIN_PROMPTS,
    QUESTIONS,
    Comparison,
    Comparisons,
    Question,
    pass_at_1,
)
from tuning.report.formats import count, interval, listed, perplexity, sentence, signed
from tuning.report.labels import Labels
from tuning.report.rows import TUNED, Budget, Row, base_of, budgets, of_role
from tuning.report.seeds import trust

CARDS = 3
"""More budgets than these are left to the table."""
_SEE = "See the table for the state of each run."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A question, the short answer and a sentence."""

    question: str
    answer: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The top of the page: a title, a paragraph, and the findings."""

    title: str
    text: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best of several ways to spend one budget, and its comparisons with the others."""

    best: Row
    compared: list[Comparison]
    """From the best to the worst of the others."""
    labels: Labels

    @classmethod
    def of(cls, ways: Sequence[Row], comparisons: Comparisons, labels: Labels) -> Ranking:
        """The ranking of all ways to spend one budget that were scored on the same prompts."""
        best = max(ways, key=pass_at_1)
        compared = [c for c in comparisons.rankings[best.budget] if c.ours is best]
        return cls(best=best, compared=compared, labels=labels.within_budget())

    @property
    def ties(self) -> list[Row]:
        """The ways that these prompts cannot tell from the best."""
        return [c.theirs for c in self.compared if c.sign <= 0]

    @property
    def settled(self) -> bool:
        """Whether there are enough prompts for a ranking."""
        assert self.best.scores is not None
        return self.best.scores.prompts >= MIN_PROMPTS

    @property
    def clear(self) -> bool:
        """Whether the best is told from all others."""
        return self.settled and not self.ties

    @property
    def sentence(self) -> str:
        """How far the best is from the next, if that is known."""
        if self.ties:
            names = listed([self.labels.prose(row) for row in self.ties])
            return (
                f"On these prompts it is not significantly better than {names}, so their order "
                "is not a result."
            )
        if self.compared and self.settled:
            d = self.compared[0].difference
            name = self.labels.prose(self.compared[0].theirs)
            return f"Next is {name}, {interval(d.estimate, d.low, d.high)} behind it."
        return ""


def answer(rows: Sequence[Row], comparisons: Comparisons, labels: Labels) -> Answer:
    """How a budget should have been spent, as far as this experiment can tell."""
    findings = (*_findings(comparisons, labels), *_about_seeds(rows))
    found = {key: ways for key, ways in budgets(rows).items() if len(ways) > 1}
    if not found:
        title, text = _without_choice(rows, comparisons, labels)
        return Answer(title=title, text=text, findings=findings)
    if len(found) > 2 and len({model for model, _ in found}) == 1:
        title, text = _over_budgets(found, comparisons, labels)
        return Answer(title=title, text=text, findings=findings)
    (model, size), ways = next(iter(found.items()))
    ranking = Ranking.of(ways, comparisons, labels)
    title, text = _title(ranking, size), _decision(ranking, rows, size)
    if labels.models:
        title = f"{model}: {title[:1].lower()}{title[1:]}"
    if len(found) > 1:
        others = len(found) - 1
        which = "the other budget is" if others == 1 else f"the {others} other budgets are"
        text += f" That is {model} with {labels.sized(size)}; {which} in the table."
    cards = [_card(key, ways, comparisons, labels) for key, ways in list(found.items())[1:]]
    return Answer(
        title=title, text=text, findings=(*(cards if len(cards) <= CARDS else ()), *findings)
    )


def _over_budgets(
    found: Mapping[Budget, Sequence[Row]], comparisons: Comparisons, labels: Labels
) -> tuple[str, str]:
    """The title and the text for several budgets of one model: what is best for the smallest and
    the largest, and for how many it is clear.
    """
    ordered = sorted(found.items(), key=lambda entry: entry[0][1] or 0)
    rankings = [(size, Ranking.of(ways, comparisons, labels)) for (_, size), ways in ordered]
    ends = (rankings[0], rankings[-1])
    texts = [
        f"Of {len(ranking.compared) + 1} ways to spend {labels.sized(size)}, "
        f"{ranking.labels.prose(ranking.best)} scored highest: pass@1 {_interval(ranking.best)} on "
        f"{_prompts(ranking.best)}. {ranking.sentence}".strip()
        for size, ranking in ends
    ]
    clear = sum(ranking.clear for _, ranking in rankings)
    texts.append(
        f"The best is told from all other ways for {clear} of {len(rankings)} budgets, corrected "
        "for all pairs of ways; the table below has every budget and the ways that are not told "
        "apart."
    )
    return _title_over_budgets(ends, labels), " ".join(texts)


def _title_over_budgets(ends: Sequence[tuple[int | None, Ranking]], labels: Labels) -> str:
    """What is best for the smallest and the largest budget, where that is clear."""
    known = [(size, _share(ranking.best)) for size, ranking in ends if ranking.clear]
    open_ones = [size for size, ranking in ends if not ranking.clear]
    if not known:
        small, large = open_ones
        return f"No clear winner for {count(small)} or for {labels.sized(large)}"
    (size, best), *other = known
    title = f"Best for {labels.sized(size)}: {best}"
    title += "".join(f"; for {count(size)}: {best}" for size, best in other)
    return title + "".join(f"; for {count(size)} there is no clear winner" for size in open_ones)


def _title(ranking: Ranking, size: int | None) -> str:
    best = ranking.best
    if not ranking.settled:
        return f"Too few test prompts to say how {ranking.labels.sized(size)} should be split"
    if ranking.ties:
        which = f" for {ranking.labels.budget(size)}" if ranking.labels.sizes else ""
        return f"No clear winner{which}: {split(best)}, or {split(ranking.ties[0])}"
    if best.role == "pt" and best.prices:
        return f"Spend {ranking.labels.sized(size)} as {split(best)}"
    if best.role == "pt":
        return (
            f"Spend {count(best.sft_share)} of {ranking.labels.sized(size)} on SFT, "
            f"then {count(best.train_size)} on {best.method}"
        )
    if best.role == "fork":
        return f"Spend {ranking.labels.budget(size)} on {_sft_to(best)}, then {best.method}"
    return f"Spend all {ranking.labels.sized(size)} on {best.method or 'SFT'}"


def split(row: Row) -> str:
    """How a model spent its budget: `250 on SFT then 750 on DPO`."""
    if row.role == "pt":
        return f"{count(row.sft_share)} on SFT then {count(row.train_size)} on {row.method}"
    if row.role == "fork":
        return f"{_sft_to(row)} then {row.method}"
    return f"all on {row.method or 'SFT'}"


def _sft_to(fork: Row) -> str:
    return f"SFT to {fork.rule.spelled_out}" if fork.rule else "SFT"


def _decision(ranking: Ranking, rows: Sequence[Row], size: int | None) -> str:
    ways, budget = len(ranking.compared) + 1, ranking.labels.budget(size)
    text = (
        f"In this experiment {ranking.labels.prose(ranking.best)} scored highest of {ways} ways to "
        f"spend {budget}: pass@1 {_interval(ranking.best)} on {_prompts(ranking.best)}"
        f"{_beside_base(rows, ranking.best)}."
    )
    return " ".join(filter(None, (text, ranking.sentence)))


def _card(key: Budget, ways: Sequence[Row], comparisons: Comparisons, labels: Labels) -> Finding:
    """The answer for one more budget."""
    model, size = key
    ranking = Ranking.of(ways, comparisons, labels)
    if not ranking.settled:
        short = "too few prompts"
    else:
        short = "no clear winner" if ranking.ties else _share(ranking.best)
    best = sentence(ranking.labels.prose(ranking.best))
    who = f"{model} with " if labels.models else ""
    return Finding(
        question=f"How should {who}{labels.sized(size)} be split?",
        answer=short,
        text=f"{best} scored highest: pass@1 {_interval(ranking.best)}. {ranking.sentence}".strip(),
    )


def _share(row: Row) -> str:
    """`25% SFT`; of a fork, the sweetspot at which SFT stopped."""
    if row.rule is not None:
        return f"SFT to {row.rule.words}"
    price = row.prices[0] if row.prices else 1
    share = 100 * (row.sft_share or 0) * price / (row.total_budget or 1)
    then = f", then {row.method}" if row.method else ""
    return f"{share:.3g}% SFT{then}" if 0 < share < 100 else f"all {row.method or 'SFT'}"


def _without_choice(
    rows: Sequence[Row], comparisons: Comparisons, labels: Labels
) -> tuple[str, str]:
    """The title and the text if no two ways to spend one budget were scored."""
    scored = [row for row in rows if row.scores and row.role != "base"]
    if not scored:
        return _without_scores(rows)
    best = max(scored, key=pass_at_1)
    text = (
        f"The highest score is that of {labels.prose(best)}: pass@1 {_interval(best)}"
        f"{_beside_base(rows, best)}. No two ways of spending the same budget were scored, so none "
        "is recommended."
    )
    sft = _longest_sft(comparisons)
    if sft is not None and sft.sign > 0 and not labels.models:
        before, after = pass_at_1(sft.theirs), pass_at_1(sft.ours)
        return f"SFT lifts pass@1 from {before:.3f} to {after:.3f}", text
    return "Partial results: see what was scored so far", text


def _without_scores(rows: Sequence[Row]) -> tuple[str, str]:
    runs = of_role(rows, "sft", "reference_sft", *TUNED)
    trained = [row for row in runs if row.cost]
    texts = [f"{len(trained)} of {len(runs)} runs are trained." if trained else ""]
    title = "Nothing has been scored yet"
    spots = of_role(rows, "sweetspot")
    sft = next((row for row in trained if spots and row.role == "sft"), None)
    if sft is not None:
        title = f"SFT brought perplexity to {perplexity(sft.perplexity)}; nothing is scored yet"
        reached = [row.rule.words for row in spots if row.rule and row.sft_data_used is not None]
        names = f": {listed(reached)}" if reached else ""
        texts.append(
            f"SFT used {count(sft.sft_data_used)} examples and reached {len(reached)} of "
            f"{len(spots)} sweetspots{names}."
        )
    return title, " ".join(filter(None, (*texts, _SEE)))


def _findings(comparisons: Comparisons, labels: Labels) -> tuple[Finding, ...]:
    """The questions that comparisons answer, each with a short answer and a sentence."""
    found = []
    asked: tuple[Question, ...] = ("parent", "whole_budget")
    for question in asked:
        if mine := comparisons.about(question):
            better = f"{sum(c.sign > 0 for c in mine)} of {len(mine)}"
            text = _summary(mine, labels)
            found.append(Finding(question=QUESTIONS[question], answer=better, text=text))
    sft = _longest_sft(comparisons)
    return tuple([*found, _about_sft(sft, labels)] if sft else found)


def _about_seeds(rows: Sequence[Row]) -> tuple[Finding, ...]:
    """How far one seed can be trusted, where several were trained."""
    if not (found := trust(rows)):
        return ()
    every = found[0]
    text = (
        "The score of one seed lies so near the mean over seeds and prompts 95 times in 100; its "
        f"{every.prompts} prompts alone would say ±{every.prompts_only:.3f}. Between seeds the "
        f"standard deviation is {every.between:.3f} [{every.between_low:.3f}, "
        f"{every.between_high:.3f}], from {every.seeds} scores of {every.ways} models."
    )
    question = "How far can one seed be trusted?"
    return (Finding(question=question, answer=f"±{every.one:.3f}", text=text),)


def _longest_sft(comparisons: Comparisons) -> Comparison | None:
    """The comparison with the base of the SFT run with the most examples, of the first model."""
    mine = [c for c in comparisons.about("base") if c.ours.role in ("sft", "reference_sft")]
    mine = [c for c in mine if c.ours.model == mine[0].ours.model]
    return max(mine, key=lambda c: c.ours.train_size or 0, default=None)


def _about_sft(sft: Comparison, labels: Labels) -> Finding:
    name = sentence(labels.prose(sft.ours))
    text = f"{sentence(sft.verdict)}: {sft.text}."
    if sft.sign:
        text = f"{name} is {sft.verdict} than the base model on the same prompts: {sft.text}."
    return Finding(
        question="How much does SFT improve the base model?",
        answer=signed(sft.difference.estimate),
        text=text,
    )


def _summary(mine: Sequence[Comparison], labels: Labels) -> str:
    """One sentence each for models that are better, worse, and not told apart."""
    if not mine[0].conclusive:
        return f"{count(mine[0].prompts)} prompts are too few to tell."
    parts = []
    for sign, verdict in ((1, "better"), (-1, "worse")):
        if some := [c for c in mine if c.sign == sign]:
            parts.append(f"{_named(some, labels)} {'is' if len(some) == 1 else 'are'} {verdict}.")
    same = sum(c.sign == 0 for c in mine)
    if same:
        which = "The other" if parts else "The"
        others = f"{which} model differs" if same == 1 else f"{which} {same} models differ"
        parts.append(f"{others} by less than these prompts can show.")
    return " ".join(parts)


def _named(mine: Sequence[Comparison], labels: Labels) -> str:
    if len(mine) > 3:
        return f"{len(mine)} models"
    named = [f"{labels.prose(c.ours)} ({signed(c.difference.estimate)})" for c in mine]
    return sentence(listed(named))


def _interval(row: Row) -> str:
    assert row.scores is not None
    return interval(*row.scores.first)


def _prompts(row: Row) -> str:
    assert row.scores is not None
    return f"{row.scores.prompts:,} test prompt{'s' if row.scores.prompts > 1 else ''}"


def _beside_base(rows: Sequence[Row], row: Row) -> str:
    base = base_of(rows, row)
    return f"; the base model has {pass_at_1(base):.3f}" if base and base.scores else ""
