"""The page: one file that needs no other, from the answer down to the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tuning.report import plots, tables
from tuning.report.caveats import caveats
from tuning.report.comparisons import Comparison
from tuning.report.diagram import chain
from tuning.report.perplexity_plot import perplexity_figure
from tuning.report.rows import Row, of_role
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
        _section("What was run", _figure(chain(rows), _chain_words(about))) if rows else "",
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
        f'<header><p class="kicker">Sweetspot experiment · {escape(experiment)}</p>'
        f'<h1>{escape(answer.title)}</h1><p class="lead">{escape(answer.text)}</p>'
        f'<div class="meta">{_meta(about, rows)}</div></header>'
        + (f'<div class="cards">{cards}</div>' if cards else "")
    )


def _meta(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    scores = next((row.scores for row in rows if row.scores), None)
    budget, share = about.get("total_data"), about.get("sft_data")
    facts = [
        ("model", about.get("model")),
        ("dataset", about.get("dataset")),
        ("task", about.get("task")),
        ("budget", f"{count(budget)} examples" if budget else None),
        ("SFT may use", count(share) if share else None),
        ("tested on", f"{scores.prompts:,} prompts × {scores.samples} answers" if scores else None),
    ]
    return "".join(
        f"<span>{name} <b>{escape(str(value))}</b></span>" for name, value in facts if value
    )


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


def _chain_words(about: Mapping[str, Any]) -> str:
    size = about.get("total_data")
    budget = f"{count(size)} examples" if size else "budget"
    return (
        "Each box is a model: its name, the examples that made it, and its pass@1. SFT passes "
        f"sweetspots, and each fork spends what is left there of the {budget} on preference tuning."
    )


def _notes(rows: Sequence[Row]) -> str:
    if not any(row.role == "fork" and row.perplexity is not None for row in rows):
        return ""
    return (
        '<p class="note">Brackets are 95% intervals over prompts. The perplexity of a fork is that '
        "of the sweetspot that it starts from. The highest pass@1 is shaded.</p>"
    )


def _figures(rows: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    """The sections with a figure, numbered in the order in which there are any."""
    drawn = [
        ("Where to stop SFT", plots.score_figure(rows, about.get("total_data")), _SCORE),
        ("Perplexity on the way", perplexity_figure(rows), _PERPLEXITY),
        ("More than one attempt", plots.pass_at_k_figure(rows), _PASS_AT_K),
    ]
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
    svg = plots.cost_figure(rows)
    if svg is None:
        return ""
    words = ""
    base = next(iter(of_role(rows, "base")), None)
    if base is not None and base.cost is not None:
        words = (
            f"Every model stands on a base whose pre-training took {tokens(base.cost.tokens)} "
            f"tokens and {base.cost.seconds:,.0f} seconds; that is not counted here."
        )
    return _section("What it cost", _figure(svg, _COST) + tables.cost(rows), words)


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
