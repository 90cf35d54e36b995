"""Merge several plans into one experiment; a stage that they share becomes one stage.

Stages are the same if their names and the hashes of run and evaluation are equal; their phases are
united. Equal names with different hashes are a UserError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuning.plan import REMAINING, Plan, Stage
from tuning.runs.errors import UserError
from tuning.runs.identity import digest

PHASES = ("train", "infer", "evaluate", "measure")
_SCALARS = ("dataset", "task", "prompts", "samples", "temperature", "sft_cost", "pft_cost")
_COSTS = ("sft_cost", "pft_cost")


def unite(first: Stage, second: Stage) -> Stage:
    """One stage with the phases of both; UserError if only their names are equal."""
    if first.hash != second.hash:
        raise UserError(
            f"two different runs would be called '{first.name}'; settings that are not part of the "
            "name must be equal within one experiment. Make it two experiments."
        )
    if first.evaluation_hash != second.evaluation_hash:
        raise UserError(
            f"'{first.name}' would be evaluated in two ways; evaluation settings cannot vary "
            "within one experiment. Make it two experiments."
        )
    phases = tuple(p for p in PHASES if p in first.phases or p in second.phases)
    return replace(
        first,
        role=second.role if first.role == "sft" else first.role,
        phases=phases,
        autotune=first.autotune or second.autotune,
        before_after=first.before_after or second.before_after,
        measure_hash=first.measure_hash or second.measure_hash,
        parents=tuple(dict.fromkeys((*first.parents, *second.parents))),
        total_data=first.total_data if first.total_data is not None else second.total_data,
    )


def merged(plans: Sequence[Plan], experiment: str | None = None) -> Plan:
    """Merge plans of either kind into one experiment; UserError if they conflict."""
    _require_one_price(plans)
    plans = _forks_told_apart(plans)
    stages: dict[str, Stage] = {}
    for plan in plans:
        for stage in plan.stages:
            existing = stages.get(stage.name)
            stages[stage.name] = unite(existing, stage) if existing else stage
    about = plans[0].about if len(plans) == 1 else _about(plans)
    name = experiment or _default_name(stages.values(), about)
    return Plan(experiment=name, stages=tuple(stages.values()), about=about)


def _require_one_price(plans: Sequence[Plan]) -> None:
    """Raise UserError unless all budgets are counted alike."""
    for name in _COSTS:
        found = list(dict.fromkeys(str(plan.about.get(name, "1")) for plan in plans))
        if len(found) > 1:
            raise UserError(
                f"{name} is {' and '.join(found)} within one experiment, whose budgets could not "
                "be compared; make it several experiments."
            )


def _forks_told_apart(plans: Sequence[Plan]) -> list[Plan]:
    """If forks have different budgets, add the budget to their planned names."""
    totals = {stage.total_data for plan in plans for stage in plan.stages if stage.role == "fork"}
    if len(totals) < 2:
        return list(plans)
    return [
        replace(plan, stages=tuple(_with_budget(stage) for stage in plan.stages)) for plan in plans
    ]


def _with_budget(stage: Stage) -> Stage:
    if stage.role != "fork":
        return stage
    of = f"{REMAINING}-of-{stage.total_data}"
    return replace(stage, name=stage.name.replace(REMAINING, of))


def _default_name(stages: Iterable[Stage], about: Mapping[str, Any]) -> str:
    """A name with a hash of the runs, so that it is the same for training and evaluation."""
    hashes = [(s.name, s.hash, s.evaluation_hash) for s in stages if s.trains]
    dataset = about["dataset"]
    return f"grid_{dataset if isinstance(dataset, str) else 'several'}-{digest(hashes)[:6]}"


def _about(plans: Sequence[Plan]) -> dict[str, Any]:
    """The choices of all plans: lists united, single values kept if all plans agree."""
    abouts = [_listed(plan) for plan in plans]
    budgets = all(plan.about.get("kind") == "budget" for plan in plans)
    about: dict[str, Any] = {"kind": "budget" if budgets else "grid"}
    for key in dict.fromkeys(key for about in abouts for key in about):
        values = [about[key] for about in abouts if key in about]
        if key == "model_of":
            about[key] = {name: model for value in values for name, model in value.items()}
        elif key in _SCALARS:
            about[key] = values[0] if all(v == values[0] for v in values) else _united(values)
        else:
            about[key] = _united(values)
    return about


def _listed(plan: Plan) -> dict[str, Any]:
    """The choices of a plan; `model_of` under the stage names that merging may have changed."""
    about = {key: value for key, value in plan.about.items() if key != "kind"}
    names = [stage.name for stage in plan.stages]
    return about | {"model_of": dict(zip(names, about["model_of"].values(), strict=True))}


def _united(values: Sequence[Any]) -> list[Any]:
    """The distinct entries of lists and single values, in order."""
    entries: list[Any] = []
    for value in values:
        for entry in value if isinstance(value, list) else [value]:
            if entry not in entries:
                entries.append(entry)
    return entries
