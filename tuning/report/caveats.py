"""What the numbers of an experiment do not show, said with its own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tuning.report.comparisons import MIN_PROMPTS, Comparison
from tuning.report.row import WAYS, Row, is_counted, of_role, same_weights
from tuning.report.table import count

_DATASETS = {
    "arith": "The problems, the solutions and the wrong answers of arith are made by a program. "
    "Its rejected answers are mistakes that a program can think of, not those of this model.",
}


def caveats(
    rows: Sequence[Row], comparisons: Sequence[Comparison], about: Mapping[str, Any]
) -> list[str]:
    """One sentence or two each; only what applies."""
    found = [
        _seeds(rows),
        _resolution(comparisons),
        _many(comparisons),
        _schedule(rows),
        _offline(rows),
        _DATASETS.get(str(about.get("dataset")), "") if comparisons else "",
        _price(rows),
        _same_weights(rows),
        _missing(rows),
    ]
    return [text for text in found if text]


def _seeds(rows: Sequence[Row]) -> str:
    trained = of_role(rows, "sft", *WAYS)
    seeds = sorted({row.seed for row in trained if row.seed is not None})
    if not seeds or not any(row.scores for row in rows):
        return ""
    if any(row.names_seed for row in rows) and len(seeds) > 1:
        return (
            f"Every split was trained with seeds {', '.join(map(str, seeds))}, and the headline "
            "and the figure take all their answers together. The intervals are over test prompts; "
            "they hold for these seeds and say nothing of others."
        )
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return (
        f"Every model was trained once, with {which}. The intervals are over test prompts; they "
        "say nothing of how far another seed would move a model."
    )


def _resolution(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    prompts = comparisons[0].prompts
    if prompts < MIN_PROMPTS:
        return f"{prompts} test prompts are too few for any comparison."
    half = median((c.difference.high - c.difference.low) / 2 for c in comparisons)
    return (
        f"With {prompts:,} prompts, differences in pass@1 of less than about {half:.2f} cannot be "
        "seen. No difference seen is not the same as no difference."
    )


def _many(comparisons: Sequence[Comparison]) -> str:
    if len(comparisons) < 5:
        return ""
    return (
        f"The page makes {len(comparisons)} comparisons at 95% each, uncorrected: about one in "
        "twenty would fall outside its interval by chance, and the best of several models is "
        "favoured by luck."
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
        runs = "runs" if is_counted(rows) else "forks"
        parts.append(
            f"All {runs} of a method share their hyperparameters; none was tuned for itself."
        )
    return " ".join(parts)


def _price(rows: Sequence[Row]) -> str:
    """What an example of either kind took in tokens."""
    sft = next(
        (r for r in of_role(rows, "reference_sft", "sft") if r.cost and r.sft_data_used), None
    )
    tuned = of_role(rows, "fork", "pt", "reference_pt")
    pairs = [row for row in tuned if row.cost and row.pft_data]
    if sft is None or not pairs:
        return ""
    assert sft.cost is not None and sft.sft_data_used
    each = sft.cost.tokens / sft.sft_data_used
    pair = median(row.cost.tokens / row.pft_data for row in pairs if row.cost and row.pft_data)
    return (
        f"The budget counts examples, and they differ in price: here an SFT example took "
        f"{each:,.0f} training tokens and a preference example {pair:,.0f}, all passes over them "
        "counted. By tokens or seconds another model may be the best buy."
    )


def _same_weights(rows: Sequence[Row]) -> str:
    for sft in of_role(rows, "sft"):
        for spot in of_role(rows, "sweetspot"):
            if same_weights(spot, sft) and spot.scores and sft.scores:
                return (
                    f"SFT stopped at {spot.spot}, so “{sft.label}” and “{spot.label}” are the same "
                    "weights; what differs between their scores is the luck of sampling."
                )
    return ""


def _missing(rows: Sequence[Row]) -> str:
    missing = [row for row in rows if row.missing]
    if not missing:
        return ""
    labels: dict[str, list[str]] = {}
    for row in missing:
        labels.setdefault(row.note, []).append(row.label)
    reasons = "; ".join(f"{', '.join(names)}: {note}" for note, names in labels.items())
    which = "One row has" if len(missing) == 1 else f"{count(len(missing))} rows have"
    return f"{which} no result. {reasons}."
