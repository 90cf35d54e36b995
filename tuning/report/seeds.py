"""The seeds of an experiment: runs that differ in nothing else become one row, and what their
scores say about how far one seed can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import chdtri

from tuning.evaluation.crossed import Crossed, Parts, crossed, parts
from tuning.evaluation.intervals import Z, mean_interval
from tuning.report.rows import Budget, Cost, Row, Scores, of_role

Key = tuple[Any, ...]


def united(rows: Sequence[Row]) -> list[Row]:
    """The rows with the seeds of each way as one row, in the order of their first seeds.

    Its score is the mean of the seeds' scores, its interval holds for other prompts and other
    seeds. Without several seeds the rows are returned as they are.
    """
    groups = [rows for same in _groups(rows) for rows in _poolable(same)]
    several = [same for same in groups if len(_scored(same)) > 1]
    made = crossed([_table(same) for same in several])
    scores = {id(same): found for same, found in zip(several, made, strict=True)}
    return [_united(same, scores.get(id(same))) if len(same) > 1 else same[0] for same in groups]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that differ in their seed only, by what they are and what they start from."""
    groups: dict[Key, list[Row]] = {}
    keys: dict[str, Key] = {}
    for row in rows:
        size = None if row.role == "fork" else row.train_size
        parent = keys.get(row.parent or "", (row.parent,))
        way = (row.role, row.model, row.pft_method, row.sft_share, row.rule, size)
        key: Key = (*way, row.total_budget, row.variant, parent)
        if row.role == "base":
            key = ("base", row.stage_name)
        keys.setdefault(row.run_name, key)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _poolable(rows: list[Row]) -> list[list[Row]]:
    """One group if all seeds answered equally many prompts, otherwise a group a row."""
    seeds = {row.seed for row in rows}
    prompts = {len(scores.correct) for scores in _scored(rows)}
    return [rows] if len(prompts) < 2 and len(seeds) == len(rows) else [[row] for row in rows]


def _scored(rows: Sequence[Row]) -> list[Scores]:
    return [row.scores for row in rows if row.scores]


def _table(rows: Sequence[Row]) -> np.ndarray:
    """pass@1 of every seed on every prompt; shape (seeds, prompts)."""
    return np.array([scores.per_prompt for scores in _scored(rows)])


def _united(rows: Sequence[Row], score: Crossed | None) -> Row:
    """One row for the seeds of a way: means of what each took and scored."""
    scored = [row for row in rows if row.scores]
    first = replace(
        rows[0],
        seed=None,
        seeds=tuple(row.seed for row in scored if row.seed is not None),
        before_after=None,  # each training has its own, with its own interval
        state="done" if scored else rows[0].state,
        note="; ".join(f"seed {row.seed}: {row.note}" for row in rows if row.missing),
        **{name: _mean(rows, name) for name in ("perplexity", "sft_data_used", "pft_data")},
        **{name: _mean_cost(rows, name) for name in ("cost", "sft_cost", "pft_cost")},
    )
    if score is None:
        return replace(first, scores=scored[0].scores if scored else None)
    return replace(first, scores=_scores([row.scores for row in scored if row.scores], score))


def _mean(rows: Sequence[Row], name: str) -> Any:
    """The mean of a number over the seeds that have it, whole where all are."""
    values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
    if not values:
        return None
    return round(fmean(values)) if all(isinstance(v, int) for v in values) else fmean(values)


def _mean_cost(rows: Sequence[Row], name: str) -> Any:
    costs: list[Cost] = [cost for row in rows if (cost := getattr(row, name))]
    if not costs:
        return None
    seconds = fmean(cost.seconds for cost in costs)
    return Cost(tokens=round(fmean(cost.tokens for cost in costs)), seconds=seconds)


def _scores(seeds: Sequence[Scores], score: Crossed) -> Scores:
    """The scores of all seeds as one: every prompt with the answers of all of them."""
    low, high = max(0.0, score.low), min(1.0, score.high)
    if not score.prompt_error and not score.seed_error:
        alike = mean_interval(seeds[0].per_prompt)
        low, high = alike.low, alike.high
    ks = [k for k in seeds[0].pass_at_k if all(k in each.pass_at_k for each in seeds)]
    several = {k: _means([each.pass_at_k[k] for each in seeds]) for k in ks}
    names = [name for name in seeds[0].parts if all(name in each.parts for each in seeds)]
    return replace(
        seeds[0],
        samples=sum(each.samples for each in seeds),
        correct=tuple(map(sum, zip(*(each.correct for each in seeds), strict=True))),
        pass_at_k=several | {1: (score.estimate, low, high)},
        parts={name: fmean(each.parts[name] for each in seeds) for name in names},
        by_seed=tuple(tuple(each.per_prompt) for each in seeds),
        prompt_error=score.prompt_error,
        seed_error=score.seed_error,
    )


def _means(values: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Estimates and bounds, each the mean over seeds."""
    middle, low, high = map(fmean, zip(*values, strict=True))
    return middle, low, high


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the score of one seed can be trusted, from the ways that have several."""

    budget: Budget | None
    """The budget that the ways belong to; None: all of them."""
    ways: int
    seeds: int
    """Scores of single seeds in all."""
    prompts: int
    between: float
    """Standard deviation of the score between seeds, the noise of prompts and answers taken out."""
    between_low: float
    between_high: float
    """Its 95% interval."""
    within: float
    """Standard error of one seed's score over prompts, the noise of its answers with it."""

    @property
    def one(self) -> float:
        """Within this of its way's mean over seeds and prompts lie 95% of single scores."""
        return float(Z * np.hypot(self.between, self.within))

    @property
    def prompts_only(self) -> float:
        """The half width of the interval that one seed's prompts alone give."""
        return Z * self.within


def trust(rows: Sequence[Row]) -> list[Trust]:
    """What the united rows say about single seeds: of all ways first, then of each budget."""
    tables: list[tuple[Budget, Parts]] = [
        (row.budget, parts(np.array(row.scores.by_seed)))
        for row in of_role(rows, "sft", "sweetspot", "fork", "pt", "reference_sft", "reference_pt")
        if row.scores and len(row.scores.by_seed) > 1
    ]
    if not tables:
        return []
    found = [_trust(None, [each for _, each in tables])]
    keys = list(dict.fromkeys(key for key, _ in tables if key[1] is not None))
    if len(keys) > 1:
        found += [_trust(key, [each for mine, each in tables if mine == key]) for key in keys]
    return found


def _trust(budget: Budget | None, mine: Sequence[Parts]) -> Trust:
    """The pooled variances; those between seeds with the interval of a variance of normals."""
    weights = [each.seeds - 1.0 for each in mine]
    df = sum(weights)
    between = float(np.average([each.between for each in mine], weights=weights))
    noise = float(np.average([each.noise for each in mine], weights=weights))
    low, high = (df * between / float(chdtri(df, tail)) for tail in (0.025, 0.975))
    between, low, high = (max(0.0, value - noise) ** 0.5 for value in (between, low, high))
    return Trust(
        budget=budget,
        ways=len(mine),
        seeds=sum(each.seeds for each in mine),
        prompts=mine[0].prompts,
        between=between,
        between_low=low,
        between_high=high,
        within=fmean(each.within for each in mine) ** 0.5,
    )
