"""The page: one HTML file that needs no other, from the answer down to the settings.

This module chooses the sections and their texts; `templates/` has the HTML and the style sheet.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuning.report import before_after, html_tables
from tuning.report.answer import Answer
from tuning.report.caveats import caveats
from tuning.report.comparisons import Comparisons
from tuning.report.diagram import chain
from tuning.report.figures import cost_figure, pass_at_k_figure, share_figure, with_cost
from tuning.report.formats import count, seconds, tokens
from tuning.report.generations import Generations
from tuning.report.grid import best_splits, needed
from tuning.report.grid_figures import budget_figure, is_grid, ratio_figure
from tuning.report.labels import Labels
from tuning.report.palette import COLOURS, Palette
from tuning.report.rows import Row, of_role
from tuning.report.search import Searched
from tuning.report.seeds import Trust, trust
from tuning.report.settings import settings
from tuning.report.sft_figure import measures_of, sft_figure
from tuning.report.tunings import Tuning
from tuning.report.usage import Line
from tuning.sweetspots.rules import PERPLEXITY

if TYPE_CHECKING:
    from jinja2 import Environment

_KINDS = {"budget": "Budget experiment", "grid": "Several experiments"}
_SHARE = (
    "The score of each way to spend a budget: at the left preference tuning alone, at the right "
    "SFT alone, between them SFT on that share and preference tuning of the result on the rest. "
)
_RINGS = (
    "Rings saw SFT alone and leave the rest unspent; a filled mark above its ring is what "
    "preference tuning added. "
)
_BARS = "Bars are 95% intervals over prompts."
_BARS_OF_SEEDS = "Points are means over seeds, bars 95% intervals over prompts and seeds together."
_RATIO = "The score of each way to spend a budget, a line for each budget. "
_BUDGET = (
    "The same scores over the budget, a line for each share of SFT: read across for the budget "
    "that a score takes, and up for the best split of a budget. "
)
MOST_ROWS, MOST_COMPARISONS = 48, 24
"""Longer tables are folded away, behind the figures."""
_PERPLEXITY = (
    "Perplexity of the responses in the validation pool while SFT runs. {} A second pass over the "
    "same examples is not charged to the budget again."
)
_TARGETS = (
    "{} of answers that are sampled to problems of the validation pool while SFT runs, with its "
    "95% interval over problems. At each target a checkpoint was kept; a fork starts from it with "
    "the examples that are left."
)
_FROM_SPOTS = (
    "At each threshold a checkpoint was kept; a fork starts from it with the examples that are "
    "left."
)
_FROM_ENDS = "Preference tuning starts from the end of a line."
_PASS_AT_K = (
    "The chance that at least one of k sampled answers is right, by the unbiased estimator. Where "
    "curves meet as k grows, training made right answers more likely rather than new ones possible."
)
_COST = (
    "The same budget in several currencies: examples, the tokens that the trainer counted, and "
    "seconds of training. Blue is SFT, the other colour preference tuning. Runs that shared the "
    "machine slowed each other down, so seconds are rough."
)
_CHAIN = "Each box is a model: its name, the examples that made it, and its pass@1. "
_SPLITS = (
    "SFT takes its share of a budget, and preference tuning of the result takes the rest; at the "
    "ends of the scale one of them takes all. "
)
_FORKS = (
    "SFT passes sweetspots, and each fork spends the rest of its budget on preference tuning from "
    "there. "
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with its caption; numbered if it is a plot."""

    title: str
    svg: str
    caption: str
    number: int | None = None


def page(
    experiment: str,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    comparisons: Comparisons,
    answer: Answer,
    labels: Labels,
    usage: Sequence[Line] = (),
    tunings: Sequence[Tuning] = (),
    generations: Generations | None = None,
    *,
    runs: Sequence[Row] = (),
    search: Searched | None = None,
) -> str:
    """The HTML of the report; `runs` are the rows before seeds were united."""
    palette = Palette(rows)
    template = _templates().get_template("page.html.jinja")
    return template.render(
        experiment=experiment,
        kind=_KINDS.get(str(about.get("kind")), "Sweetspot experiment"),
        answer=answer,
        facts=_facts(about, rows),
        colours=COLOURS,
        chain=_chain(rows, labels, palette),
        results=html_tables.results(rows, labels, palette),
        has_perplexity=any(row.perplexity is not None for row in of_role(rows, "fork", "pt")),
        figures=_figures(rows, labels, palette),
        comparisons=html_tables.comparisons(comparisons, labels, palette),
        prompts=comparisons.questions[0].prompts if comparisons.questions else 0,
        cost=_cost(rows, labels, palette),
        costs=html_tables.costs(rows, labels, palette) if with_cost(rows) else [],
        pretraining=_pretraining(rows),
        usage=usage,
        tunings=tunings,
        search=search,
        before_after=_before_after(runs or rows),
        generations=generations,
        caveats=caveats(rows, comparisons.questions, about, labels),
        best=best_splits(rows, comparisons, labels),
        needed=needed(rows, labels),
        trusts=_trusts(rows, labels),
        every=_every(runs, rows),
        folded=MOST_COMPARISONS,
        long=len(rows) > MOST_ROWS,
        settings=settings(rows, labels),
    )


@functools.cache
def _templates() -> Environment:
    """The templates of the page, each compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("tuning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _trusts(rows: Sequence[Row], labels: Labels) -> list[tuple[str, Trust]]:
    """What is known of single seeds: of all budgets, and of each if there are several."""
    found = []
    for each in trust(rows):
        model, size = each.budget or (None, None)
        name = labels.sized(size) if each.budget else "all models"
        found.append((f"{model}: {name}" if model and labels.models else name, each))
    return found


def _every(runs: Sequence[Row], rows: Sequence[Row]) -> Any:
    """The results of every run, where the page shows several seeds as one."""
    if len(runs) <= len(rows):
        return None
    return html_tables.results(runs, Labels.of(runs), Palette(runs))


def _before_after(runs: Sequence[Row]) -> Any:
    """What each training changed, that of every seed."""
    return before_after.table(runs, Labels.of(runs), Palette(runs))


def _facts(about: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the experiment was made from, as far as it is known."""
    scores = next((row.scores for row in rows if row.scores), None)
    priced = "sft_cost" in about
    shares = [f"{100 * float(ratio):g}%" for ratio in about.get("sft_ratios", ())]
    facts = [
        ("model", _listed(about.get("models"))),
        ("dataset", _listed(about.get("dataset"))),
        ("task", _listed(about.get("task"))),
        ("budget", _examples(about.get("train_sizes"), "of cost" if priced else "examples")),
        ("for SFT", _listed(shares)),
        ("SFT may use", _examples(about.get("sft_data"))),
        ("an SFT example costs", _listed(about.get("sft_cost"))),
        ("a preference example costs", _listed(about.get("pft_cost"))),
        ("seeds", _listed(about.get("seeds"))),
        ("tested on", f"{scores.prompts:,} prompts × {scores.samples} answers" if scores else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _examples(sizes: Sequence[int] | None, unit: str = "examples") -> str:
    return f"{', '.join(map(count, sizes))} {unit}" if sizes else ""


def _chain(rows: Sequence[Row], labels: Labels, palette: Palette) -> Figure | None:
    svg = chain(rows, labels, palette)
    if not svg:
        return None
    spots = of_role(rows, "sweetspot")
    splits = _SPLITS if of_role(rows, "pt") or not spots else ""
    caption = f"{_CHAIN}{splits}{_FORKS if spots else ''}".strip()
    return Figure(title="What was run", svg=svg, caption=caption)


def _figures(rows: Sequence[Row], labels: Labels, palette: Palette) -> list[Figure]:
    """The plots that there are, numbered in order."""
    spots = of_role(rows, "sweetspot")
    unspent = of_role(rows, "sft", "sweetspot")
    rings = _RINGS if any(row.scores and row.total_budget for row in unspent) else ""
    falls = [row for row in spots if row.rule and row.rule.measure == PERPLEXITY]
    after = _FROM_SPOTS if falls else "" if spots else _FROM_ENDS
    perplexity = " ".join(_PERPLEXITY.format(after).split())
    bars = _BARS_OF_SEEDS if any(row.seeds for row in rows) else _BARS
    share = ("How to spend the budget", share_figure(rows, labels, palette), _SHARE + rings + bars)
    if is_grid(rows):
        ratio = ratio_figure(rows, labels, palette)
        share = ("How to spend the budget", ratio, _RATIO + bars)
    drawn = [
        share,
        ("What a larger budget buys", budget_figure(rows, labels), _BUDGET + bars),
        ("Perplexity during SFT", sft_figure(rows, labels, palette), perplexity),
        *(
            (
                f"{m.title} during SFT",
                sft_figure(rows, labels, palette, m),
                _TARGETS.format(m.title),
            )
            for m in measures_of(rows)
        ),
        ("More than one attempt", pass_at_k_figure(rows, labels, palette), _PASS_AT_K),
    ]
    present = [(title, svg, caption) for title, svg, caption in drawn if svg]
    return [
        Figure(title=title, svg=svg, caption=caption, number=number)
        for number, (title, svg, caption) in enumerate(present, 1)
    ]


def _cost(rows: Sequence[Row], labels: Labels, palette: Palette) -> Figure | None:
    svg = cost_figure(rows, labels, palette)
    return Figure(title="What it cost", svg=svg, caption=_COST) if svg else None


def _pretraining(rows: Sequence[Row]) -> str:
    """The cost of the only base model, which the models made from it do not include."""
    bases = of_role(rows, "base")
    if len(bases) != 1 or bases[0].cost is None:
        return ""
    cost = bases[0].cost
    return f"{tokens(cost.tokens)} tokens and {seconds(cost.seconds)} seconds"
