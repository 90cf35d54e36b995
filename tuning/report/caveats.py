"""The limits of the results: what the numbers of this experiment do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tuning.report.comparisons import Comparison
from tuning.report.formats import count, listed
from tuning.report.labels import Labels
from tuning.report.rows import TUNED, WAYS, Row, of_role, same_weights

_DATASETS = {
    "arith": "The problems, the solutions and the wrong answers of arith are made by a program. "
    "Its rejected answers are mistakes that a program can invent, not those of this model.",
}

_MOST_IN_FORM = 0.5


def caveats(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    about: Mapping[str, Any],
    labels: Labels,
) -> list[str]:
    """The caveats that apply, one or two sentences each."""
    found = [
        _seeds(rows),
        _resolution(comparisons),
        _many(comparisons),
        _schedule(rows),
        _offline(rows),
        _DATASETS.get(str(about.get("dataset")), "") if comparisons else "",
        _price(rows),
        _same_weights(rows, labels),
        _form(rows, labels),
        _context(rows, labels),
        _missing(rows, labels),
    ]
    return [text for text in found if text]


def _seeds(rows: Sequence[Row]) -> str:
    trained = [row for row in of_role(rows, "sft", *WAYS) if row.scores]
    several = sorted({seed for row in trained for seed in row.seeds})
    single = sorted({row.seed for row in trained if row.seed is not None})
    if several:
        return (
            f"Every way was trained with seeds {listed([str(s) for s in several], 8)}, and its "
            "score is their mean. The intervals are over test prompts and seeds together. A seed "
            "sets the adapter's first weights and the order of the examples; which examples they "
            "are, the base model and the test prompts are the same for all of them, and what other "
            "ones would change is not shown."
        )
    if not single:
        return ""
    which = f"seed {single[0]}" if len(single) == 1 else f"seeds {', '.join(map(str, single))}"
    return (
        f"Every model was trained once, with {which}. The intervals are over test prompts; they "
        "do not show how much another seed would change a model, and nothing here can: several "
        "seeds (--seeds 3) measure it."
    )


def _resolution(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    prompts = comparisons[0].prompts
    if not comparisons[0].conclusive:
        return f"{prompts} test prompts are too few for any comparison."
    half = median((c.difference.high - c.difference.low) / 2 for c in comparisons)
    return (
        f"With {prompts:,} prompts, differences in pass@1 of less than about {half:.2f} cannot be "
        "seen. No difference seen is not the same as no difference."
    )


def _many(comparisons: Sequence[Comparison]) -> str:
    if len(comparisons) < 2:
        return ""
    return (
        f"The {len(comparisons)} comparisons of the page are judged together by Holm's method, so "
        "that the chance of any false one among them is 5%; their intervals are those of each "
        "alone. The best of several ways tends to be overestimated."
    )


def _schedule(rows: Sequence[Row]) -> str:
    if not any(row.sft_data_used for row in of_role(rows, "sweetspot")):
        return ""
    return (
        "A sweetspot is a snapshot from the middle of a learning rate schedule, while SFT on "
        "the whole budget went through its schedule to the end. Part of the gap between them "
        "may be the schedule and not the data."
    )


def _offline(rows: Sequence[Row]) -> str:
    methods = {row.pft_method for row in rows if row.pft_method and row.scores}
    parts = []
    if methods & {"dpo", "kto"}:
        names = " and ".join(sorted(m.upper() for m in methods & {"dpo", "kto"}))
        parts.append(f"{names} learned from fixed pairs, not from answers of the model itself.")
    if "grpo" in methods:
        parts.append("One GRPO example is one prompt, however many answers were sampled for it.")
    if methods:
        parts.append("All runs of a method share their hyperparameters; none was tuned separately.")
    return " ".join(parts)


def _price(rows: Sequence[Row]) -> str:
    """The training tokens per example of either kind."""
    sft = next(
        (r for r in of_role(rows, "reference_sft", "sft") if r.cost and r.sft_data_used), None
    )
    pairs = [row for row in of_role(rows, *TUNED) if row.cost and row.pft_data]
    if sft is None or not pairs:
        return ""
    assert sft.cost is not None and sft.sft_data_used
    each = sft.cost.tokens / sft.sft_data_used
    pair = median(row.cost.tokens / row.pft_data for row in pairs if row.cost and row.pft_data)
    counted = "annotation" if sft.prices else "examples"
    return (
        f"The budget counts {counted}, and training differs in price: here an SFT example took "
        f"{each:,.0f} training tokens and a preference example {pair:,.0f}, all passes over them "
        "counted. By tokens or seconds another model may be the best buy."
    )


def _same_weights(rows: Sequence[Row], labels: Labels) -> str:
    for sft in of_role(rows, "sft"):
        for spot in of_role(rows, "sweetspot"):
            if same_weights(spot, sft) and spot.scores and sft.scores:
                names = f"“{labels.label(sft)}” and “{labels.label(spot)}”"
                return (
                    f"SFT stopped at a sweetspot, so {names} are the same weights; the difference "
                    "between their scores is sampling noise."
                )
    return ""


def _form(rows: Sequence[Row], labels: Labels) -> str:
    """Models most of whose answers are not in the form that is read."""
    low = [
        f"“{labels.label(row)}” in {row.scores.parts['format']:.0%} of its answers"
        for row in rows
        if row.scores and row.scores.parts.get("format", 1.0) < _MOST_IN_FORM
    ]
    if not low:
        return ""
    return (
        "An answer counts only in the form that the task reads (column “format”), and these models "
        f"rarely gave it: {'; '.join(low)}. Their scores say as much about the form as about the "
        "problems; a prompt, or a system message, that asks for the form makes them comparable."
    )


def _context(rows: Sequence[Row], labels: Labels) -> str:
    long = [
        f"{row.scores.beyond_context} of {row.scores.prompts} for “{labels.label(row)}”"
        for row in rows
        if row.scores and row.scores.beyond_context
    ]
    if not long:
        return ""
    return (
        f"Some test prompts are longer than the context of the model ({'; '.join(long)}); the "
        "answers to them mean nothing."
    )


def _missing(rows: Sequence[Row], labels: Labels) -> str:
    missing = [row for row in rows if row.missing or (row.seeds and row.note)]
    if not missing:
        return ""
    by_note: dict[str, list[str]] = {}
    for row in missing:
        by_note.setdefault(row.note, []).append(labels.label(row))
    reasons = "; ".join(f"{', '.join(names)}: {note}" for note, names in by_note.items())
    which = "One row has" if len(missing) == 1 else f"{count(len(missing))} rows have"
    lacking = (
        "no result" if all(row.missing for row in missing) else "no result, or not of all seeds"
    )
    return f"{which} {lacking}. {reasons}."
