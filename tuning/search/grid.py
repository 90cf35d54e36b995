"""The arms of a grid, from its plan, and their results, from the run directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning.evaluation.scoring import first_scores
from tuning.plan import Plan, Stage, first_share, standing
from tuning.runs import typed
from tuning.runs.rundir import RunDirectory
from tuning.search.arms import Arm, Measure, Result

WAYS = ("reference_sft", "reference_pt", "pt")
"""The roles of stages that spend a whole budget."""


def arms_of(plan: Plan) -> dict[Arm, list[Stage]]:
    """The ways to spend each budget, in the order of the plan, with their stages, one a seed."""
    models, sft_cost = plan.about["model_of"], float(plan.about.get("sft_cost", 1))
    found: dict[Arm, list[Stage]] = {}
    for stage in plan.stages:
        if stage.role not in WAYS:
            continue
        size = stage.total_data or stage.train_size or 0
        sft = plan.stage(stage.parent or "") if stage.role == "pt" else stage
        n_sft = 0 if stage.role == "reference_pt" else sft.train_size or 0
        arm = Arm(
            model=models[stage.name],
            size=size,
            n_sft=n_sft,
            method=stage.pft_method or "",
            sft_cost=sft_cost,
        )
        found.setdefault(arm, []).append(stage)
    return found


def results(plan: Plan, arms: Mapping[Arm, Sequence[Stage]], home: Path) -> dict[Arm, Result]:
    """The results of arms that a plan has; of those whose runs failed, an empty one."""
    return {
        arm: Result(**_measures(plan, [plan.stage(stage.name) for stage in stages], home))
        for arm, stages in arms.items()
    }


def _measures(plan: Plan, stages: Sequence[Stage], home: Path) -> dict[str, Measure]:
    """The measure of an arm, over the seeds whose runs ended well: on all prompts, or on the first
    ones while any seed has no more than those.
    """
    full, first = [], []
    for stage in stages:
        evaluation, part = standing(plan, stage, home).evaluation, stage.first_prompts
        if evaluation is None:
            continue
        if evaluation.done("evaluate"):
            full.append(_scores(evaluation, "scores.json"))
        elif part is not None and evaluation.done(first_share(part)):
            first.append(_scores(evaluation, first_scores(part)))
    if first:
        seen = min(len(each["correct"]) for each in first)
        cut = [each | {"correct": each["correct"][:seen]} for each in (*full, *first)]
        return {"first": _pooled(cut)}
    return {"full": _pooled(full)} if full else {}


def _scores(evaluation: RunDirectory, file: str) -> dict[str, Any]:
    return typed.scores(evaluation.path / file) or {}


def _pooled(scores: Sequence[Mapping[str, Any]]) -> Measure:
    """All seeds together, as if one model had given all their answers."""
    correct = [sum(counts) for counts in zip(*(each["correct"] for each in scores), strict=True)]
    return Measure.of(correct, sum(each["samples"] for each in scores))
