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
    models = plan.about["model_of"]
    found: dict[Arm, list[Stage]] = {}
    for stage in plan.stages:
        if stage.role not in WAYS:
            continue
        size = stage.total_data or stage.train_size or 0
        n_sft = {"reference_sft": size, "reference_pt": 0}.get(stage.role)
        if n_sft is None:
            n_sft = plan.stage(stage.parent or "").train_size or 0
        method = stage.pft_method or ""
        arm = Arm(model=models[stage.name], size=size, n_sft=n_sft, method=method)
        found.setdefault(arm, []).append(stage)
    return found


def results(plan: Plan, arms: Mapping[Arm, Sequence[Stage]], home: Path) -> dict[Arm, Result]:
    """The results of arms that a plan has; of those whose runs failed, an empty one."""
    return {
        arm: Result(**_measures(plan, [plan.stage(stage.name) for stage in stages], home))
        for arm, stages in arms.items()
    }


def _measures(plan: Plan, stages: Sequence[Stage], home: Path) -> dict[str, Measure]:
    """The measures of an arm, over the seeds whose runs ended well."""
    found: dict[str, list[dict[str, Any]]] = {"full": [], "first": []}
    for stage in stages:
        evaluation = standing(plan, stage, home).evaluation
        if evaluation is None:
            continue
        if evaluation.done("evaluate"):
            found["full"].append(_scores(evaluation, "scores.json"))
        elif stage.first_prompts is not None and evaluation.done(first_share(stage.first_prompts)):
            found["first"].append(_scores(evaluation, first_scores(stage.first_prompts)))
    best = found["full"] or found["first"]
    kind = "full" if found["full"] else "first"
    return {kind: _pooled(best)} if best else {}


def _scores(evaluation: RunDirectory, file: str) -> dict[str, Any]:
    return typed.scores(evaluation.path / file) or {}


def _pooled(scores: Sequence[Mapping[str, Any]]) -> Measure:
    """All seeds together, as if one model had given all their answers."""
    correct = [sum(counts) for counts in zip(*(each["correct"] for each in scores), strict=True)]
    return Measure.of(correct, sum(each["samples"] for each in scores))
