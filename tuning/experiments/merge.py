"""Several plans as one experiment: what two of them share is one stage.

A stage is the same one where its name, its run and its evaluation are; then what is asked of it is
united. A name that stands for two things cannot be one stage, and is the user's to put right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuning.plan import REMAINING, Plan, Stage
from tuning.runs.errors import UserError
from tuning.runs.identity import digest

PHASES = ("train", "infer", "evaluate")
_SCALARS = ("dataset", "task", "prompts", "samples", "temperature")


def unite(first: Stage, second: Stage) -> Stage:
    """One stage with the phases of both; UserError where a name stands for two things."""
    if first.hash != second.hash:
        raise UserError(
            f"two different runs would be called '{first.name}'; settings that are not part of the "
            "name must be equal within one experiment. Make two experiments of it."
        )
    if first.evaluation_hash != second.evaluation_hash:
        raise UserError(
            f"'{first.name}' would be evaluated in two ways; evaluation settings cannot vary "
            "within one experiment. Make two experiments of it."
        )
    phases = tuple(p for p in PHASES if p in first.phases or p in second.phases)
    return replace(
        first,
        role=second.role if first.role == "sft" else first.role,
        phases=phases,
        parents=tuple(dict.fromkeys((*first.parents, *second.parents))),
        total_data=first.total_data if first.total_data is not None else second.total_data,
    )


def merged(plans: Sequence[Plan], experiment: str | None = None) -> Plan:
    """Plans of either kind as one experiment; UserError where they do not fit together."""
    plans = _forks_told_apart(plans)
    stages: dict[str, Stage] = {}
    for plan in plans:
        for stage in plan.stages:
            there = stages.get(stage.name)
            stages[stage.name] = unite(there, stage) if there else stage
    about = plans[0].about if len(plans) == 1 else _about(plans)
    name = experiment or _default_name(stages.values(), about)
    return Plan(experiment=name, stages=tuple(stages.values()), about=about)


def _forks_told_apart(plans: Sequence[Plan]) -> list[Plan]:
    """Forks of one sweetspot with different budgets have their budget in their planned names."""
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
    """The same whether the runs are trained, evaluated or both."""
    hashes = [(s.name, s.hash, s.evaluation_hash) for s in stages if s.trains]
    dataset = about["dataset"]
    return f"grid_{dataset if isinstance(dataset, str) else 'several'}-{digest(hashes)[:6]}"


def _about(plans: Sequence[Plan]) -> dict[str, Any]:
    """What plans were made from, together: lists united, single values where all agree."""
    abouts = [_listed(plan) for plan in plans]
    budgets = all(plan.about.get("kind") == "budget" for plan in plans)
    found: dict[str, Any] = {"kind": "budget" if budgets else "grid"}
    for key in dict.fromkeys(key for about in abouts for key in about):
        values = [about[key] for about in abouts if key in about]
        if key == "model_of":
            found[key] = {name: model for value in values for name, model in value.items()}
        elif key in _SCALARS:
            found[key] = values[0] if all(v == values[0] for v in values) else _united(values)
        else:
            found[key] = _united(values)
    return found


def _listed(plan: Plan) -> dict[str, Any]:
    """The choices of a plan; models by the names of its stages, which merging may have changed."""
    about = {key: value for key, value in plan.about.items() if key != "kind"}
    names = [stage.name for stage in plan.stages]
    return about | {"model_of": dict(zip(names, about["model_of"].values(), strict=True))}


def _united(values: Sequence[Any]) -> list[Any]:
    """The different entries of lists and single values, in order."""
    found: list[Any] = []
    for value in values:
        for entry in value if isinstance(value, list) else [value]:
            if entry not in found:
                found.append(entry)
    return found
