"""The page: one file that needs no other, from the answer down to the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tuning.report import plots, tables
from tuning.report.budget_plot import share_figure
from tuning.report.caveats import caveats
from tuning.report.comparisons import Comparison
from tuning.report.diagram import chain
from tuning.report.perplexity_plot import perplexity_figure
from tuning.report.row import Row, is_counted, of_role
from tuning.report.settings import settings
from tuning.report.style import style_sheet
from tuning.report.table import count, tokens
from tuning.report.words import Answer

_SCORE = (
    "The score of each model against what SFT took of the budget. Rings saw SFT alone and leave "
    "the rest unspent; filled marks spent all of it. A filled mark above its ring is what "
    "preference tuning added. Bars are 95% intervals over prompts."
)
_PERPLEXITY = (
    "Perplexity of the responses in the validation pool while SFT runs. At each threshold a "
    "checkpoint was kept; a fork goes on from it with the examples that are left. A second pass "
    "over the same examples is not charged to the budget again."
)
_PASS_AT_K = (
    "The chance that at least one of k sampled answers is right, by the unbiased estimator. Where "
    "curves meet as k grows, training made right answers likelier more than it made new ones "
    "possible."
)
_COST = (
    "The same budget in three currencies: examples, the tokens that the trainer counted, and "
    "seconds of training. Blue is SFT, the other colour preference tuning. Runs that shared the "
    "machine slowed each other down, so seconds are rough."
)


_SHARE = (
    "The score of each way to spend a budget: at the left preference tuning alone, at the right "
    "SFT alone, between them SFT on that share and preference tuning of the result on the rest. "
    "Bars are 95% intervals over prompts."
)
_PERPLEXITY_OF_SPLITS = (
    "Perplexity of the responses in the validation pool while SFT runs; preference tuning goes on "
    "from the end of a line. A second pass over the same examples is not charged to the budget "
    "again."
)
_KINDS = {"budget": "Budget experiment", "grid": "Several experiments"}


def page(
    experiment: str,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    answer: Answer,
) -> str:
    """The HTML of the report."""
    body = [
        _top(experiment, about, rows, answer),
        _chain(rows, about),
        _section("Results", tables.results(rows) + _notes(rows)),
        *_figures(rows, about),
        _compared(comparisons, rows),
        _cost(rows),
        _caveats(rows, comparisons, about),
        _settings(rows),
        "<footer>Made from the run directories of this experiment. "
        "The same numbers for programs are in results.csv beside this page.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(experiment)}: {escape(answer.title)}</title>"
        f"<style>{style_sheet()}</style></head><body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _top(experiment: str, about: Mapping[str, Any], rows: Sequence[Row], answer: Answer) -> str:
    cards = "".join(
        f"<div><h3>{escape(f.question)}</h3><strong>{escape(f.answer)}</strong>"
        f"<p>{escape(f.text)}</p></div>"
        for f in answer.findings
    )
    return (
        f'<header><p class="kicker">{_kind(about)} · {escape(experiment)}</p>'
        f'<h1>{escape(answer.title)}</h1><p class="lead">{escape(answer.text)}</p>'
        f'<div class="meta">{_meta(about, rows)}</div></header>'
        + (f'<div class="cards">{cards}</div>' if cards else "")
    )


def _meta(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    scores = next((row.scores for row in rows if row.scores), None)
    budget, share = about.get("total_data"), about.get("sft_data")
    facts = [
        ("model", _listed(about.get("model") or about.get("models"))),
        ("dataset", _listed(about.get("dataset"))),
        ("task", _listed(about.get("task"))),
        ("budget", f"{count(budget)} examples" if budget else _sizes(about)),
        ("for SFT", _shares(about) if not budget else None),
        ("SFT may use", count(share) if budget and share else None),
        ("seeds", _listed(about.get("seeds"))),
        ("tested on", f"{scores.prompts:,} prompts × {scores.samples} answers" if scores else None),
    ]
    return "".join(
        f"<span>{name} <b>{escape(str(value))}</b></span>" for name, value in facts if value
    )


def _kind(about: Mapping[str, Any]) -> str:
    return _KINDS.get(str(about.get("kind")), "Sweetspot experiment")


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _sizes(about: Mapping[str, Any]) -> str:
    sizes = about.get("train_sizes") or []
    return f"{', '.join(map(count, sizes))} examples" if sizes else ""


def _shares(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{100 * float(ratio):g}%" for ratio in about.get("sft_ratios", ()))


def _section(title: str, content: str, words: str = "") -> str:
    if not content:
        return ""
    paragraph = f"<p>{escape(words)}</p>" if words else ""
    return f"<section><h2>{title}</h2>{paragraph}{content}</section>"


def _figure(svg: str, caption: str, number: int | None = None) -> str:
    name = f"<b>Figure {number}.</b> " if number else ""
    return (
        f'<figure><div class="scroll">{svg}</div>'
        f"<figcaption>{name}{escape(caption)}</figcaption></figure>"
    )


def _chain(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    svg = chain(rows) if rows else ""
    return _section("What was run", _figure(svg, _chain_words(about, rows))) if svg else ""


def _chain_words(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    start = "Each box is a model: its name, the examples that made it, and its pass@1. "
    if is_counted(rows):
        return (
            f"{start}SFT takes its share of a budget, and preference tuning goes on from there "
            "with the rest; at the ends of the scale one of them takes all."
        )
    size = about.get("total_data")
    budget = f"{count(size)} examples" if size else "budget"
    return (
        f"{start}SFT passes "
        f"sweetspots, and each fork spends what is left there of the {budget} on preference tuning."
    )


def _notes(rows: Sequence[Row]) -> str:
    tuned = of_role(rows, "fork", "pt")
    if not any(row.perplexity is not None for row in tuned):
        return ""
    if is_counted(rows):
        whose = "after preference tuning is that of the model that it continues"
        shaded = "The highest pass@1 of each budget is shaded."
    else:
        whose = "of a fork is that of the sweetspot that it starts from"
        shaded = "The highest pass@1 is shaded."
    return (
        '<p class="note">Brackets are 95% intervals over prompts. '
        f"The perplexity {whose}. {shaded}</p>"
    )


def _figures(rows: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    """The sections with a figure, numbered in the order in which there are any."""
    if is_counted(rows):
        first = ("How to split the budget", share_figure(rows), _SHARE)
    else:
        figure = plots.score_figure(rows, about.get("total_data"))
        first = ("Where to stop SFT", figure, _SCORE)
    spots = of_role(rows, "sweetspot") or not is_counted(rows)
    drawn = [
        first,
        ("Perplexity on the way", perplexity_figure(rows),
         _PERPLEXITY if spots else _PERPLEXITY_OF_SPLITS),
        ("More than one attempt", plots.pass_at_k_figure(rows), _PASS_AT_K),
    ]  # fmt: skip
    there = [(title, svg, caption) for title, svg, caption in drawn if svg]
    return [
        _section(title, _figure(svg, caption, number))
        for number, (title, svg, caption) in enumerate(there, 1)
    ]


def _compared(comparisons: Sequence[Comparison], rows: Sequence[Row]) -> str:
    if not comparisons:
        return ""
    words = (
        "Differences in pass@1 on the same prompts, with 95% intervals from a paired bootstrap "
        f"over {comparisons[0].prompts:,} prompts. “No difference that these prompts can show” "
        "means that the interval holds zero."
    )
    return _section("Which differences hold up", tables.comparisons(comparisons, rows), words)


def _cost(rows: Sequence[Row]) -> str:
    if not plots.with_cost(rows):
        return ""
    svg = plots.cost_figure(rows)
    words = ""
    bases = of_role(rows, "base")
    base = bases[0] if bases else None
    if base is not None and base.cost is not None and len(bases) == 1:
        words = (
            f"Every model stands on a base whose pre-training took {tokens(base.cost.tokens)} "
            f"tokens and {base.cost.seconds:,.0f} seconds; that is not counted here."
        )
    figure = _figure(svg, _COST) if svg else ""
    return _section("What it cost", figure + tables.cost(rows), words)


def _caveats(
    rows: Sequence[Row], comparisons: Sequence[Comparison], about: Mapping[str, Any]
) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in caveats(rows, comparisons, about))
    return _section("What these numbers do not show", f'<ul class="plain">{items}</ul>')


def _settings(rows: Sequence[Row]) -> str:
    found = settings(rows)
    if not found:
        return ""
    return _section(
        "Settings and provenance",
        f"<details><summary>Everything that each run was told, and where it ran</summary>{found}"
        "</details>",
    )
