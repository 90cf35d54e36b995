"""Reads the rows of a report: one for each stage of a plan, with or without a result.

Reads config.json, result.json, metrics.jsonl, sweetspot metadata and scores.json, and nothing
else. The rows do not depend on who ran the plan, when or where, apart from seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.plan import Plan, Stage, Standing, standing
from tuning.report.before_after import measured
from tuning.report.rows import Cost, Row, Scores
from tuning.runs import typed
from tuning.runs.errors import Skipped, StageFailed, UserError
from tuning.runs.identity import digest
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.rules import PERPLEXITY, parse
from tuning.sweetspots.store import Sweetspot, find_sweetspot

States = Mapping[str, tuple[str, str]]
"""Stage -> (state, reason), as the launcher saw the stage end."""
_NO_COST = Cost(tokens=0, seconds=0.0)


def gather(plan: Plan, home: Path, states: States | None = None) -> list[Row]:
    """A row for each stage that has or makes a model, in order; no row for pre-training."""
    rows: list[Row] = []
    for stage in plan.stages:
        if stage.role not in ("pretrain", "report"):
            rows.append(_Reader(plan, home, states or {}, rows).row(stage))
    return rows


@dataclass(frozen=True)
class _Reader:
    """Reads the row of a stage; `rows` are those of the stages before it."""

    plan: Plan
    home: Path
    states: States
    rows: list[Row]

    def row(self, stage: Stage) -> Row:
        found = standing(self.plan, stage, self.home)
        read = {
            "base": self._base,
            "sft": self._sft,
            "reference_sft": self._sft,
            "sweetspot": self._sweetspot,
            "fork": self._fork,
            "pt": self._continued,
            "reference_pt": self._preference,
        }[stage.role]
        return Row(**(self._common(stage, found) | read(stage, found.run)))

    def _common(self, stage: Stage, found: Standing) -> dict[str, Any]:
        """The fields that every role has."""
        state, note = self._state(stage, found)
        scores, evaluation_config = _scores(found.evaluation)
        return {
            "stage_name": stage.name,
            "run_name": found.run.name if found.run else stage.artifact or stage.name,
            "role": stage.role,
            "state": state,
            "note": note,
            "cause": found.cause,
            "config_hash": stage.hash,
            "model": self._model(stage),
            "sft_share": self._share(stage),
            "sft_ratio": self._ratio(stage),
            "prices": self._prices,
            "pft_method": stage.pft_method,
            "rule": parse(stage.sweetspot) if stage.sweetspot else None,
            "scores": scores,
            "seed": stage.seed,
            "variant": digest(_seedless(stage.run)),
            "train_size": found.train_size or stage.train_size,
            "total_budget": self._budget(stage),
            "config": found.run.config if found.run else None,
            "evaluation_config": evaluation_config,
            "before_after": measured(found.run),
        }

    def _state(self, stage: Stage, found: Standing) -> tuple[str, str]:
        """The state, and why there is no result."""
        if found.state in ("done", "skipped"):
            return found.state, found.reason
        state, reason = self.states.get(stage.name, ("pending", ""))
        if state in ("failed", "blocked"):
            return state, f"{state}: {reason}" if reason else state
        for directory in (found.run, found.evaluation):
            status = directory.status if directory else {"state": "pending", "reason": ""}
            if status["state"] == "failed":
                return "failed", f"failed: {status['reason']}"
            if status["state"] == "running":
                return "running", "begun and not finished"
            if status["reason"]:
                return "pending", status["reason"]
        return "pending", reason or "not run yet"

    def _model(self, stage: Stage) -> str | None:
        model: str | None = self.plan.about.get("model_of", {}).get(stage.name)
        return model

    def _share(self, stage: Stage) -> int | None:
        """The planned SFT examples of a model that spends a whole budget."""
        if stage.role == "pt":
            return self.plan.stage(stage.parent or "").train_size
        return {"reference_sft": stage.train_size, "reference_pt": 0}.get(stage.role)

    def _ratio(self, stage: Stage) -> float | None:
        """The share of the budget planned for SFT: the nearest of those that were asked for."""
        taken, budget = self._share(stage), self._budget(stage)
        asked = self.plan.about.get("sft_ratios", ())
        if taken is None or not budget or not asked:
            return None
        exact = taken * (self._prices or (1.0, 1.0))[0] / budget
        return min(map(float, asked), key=lambda ratio: abs(ratio - exact))

    @property
    def _prices(self) -> tuple[float, float] | None:
        """What an example costs, where budgets are costs."""
        about = self.plan.about
        if "sft_cost" not in about and "pft_cost" not in about:
            return None
        return float(about["sft_cost"]), float(about["pft_cost"])

    def _budget(self, stage: Stage) -> int | None:
        """The examples of the whole budget.

        An SFT run with sweetspots belongs to the budget of its forks, if there is only one.
        """
        if stage.total_data is not None or stage.role == "reference_sft":
            return stage.total_data if stage.total_data is not None else stage.train_size
        sizes = self.plan.about.get("train_sizes", ())
        parents = (s.parent for s in self.plan.stages if s.role == "sweetspot")
        stops = stage.role == "sweetspot" or stage.name in parents
        return sizes[0] if stops and len(sizes) == 1 else None

    def _base_of(self, stage: Stage) -> Row | None:
        """The row of the stage's base model."""
        model = self._model(stage)
        return next((row for row in self.rows if row.role == "base" and row.model == model), None)

    def _parent_of(self, stage: Stage) -> Row | None:
        """The row of the stage that this one continues or belongs to."""
        return next((row for row in self.rows if row.stage_name == stage.parent), None)

    def _base(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        made = (s for s in self.plan.stages if s.role == "pretrain" and s.name in stage.parents)
        pretraining = next(made, None)
        more: dict[str, Any] = {}
        if pretraining is not None:
            directory = standing(self.plan, pretraining, self.home).run
            result = _result(directory)
            more = {
                "cost": _cost(result),
                "device": result.get("device"),
                "seed": pretraining.seed,
                "config": directory.config if directory else None,
            }
        return more | {
            "perplexity": self._base_perplexity(stage),
            "sft_data_used": 0,
            "pft_data": 0,
            "sft_cost": _NO_COST,
            "pft_cost": _NO_COST,
        }

    def _base_perplexity(self, base: Stage) -> float | None:
        runs = (s for s in self.plan.stages if s.role in ("sft", "reference_sft"))
        for stage in runs:
            if self._model(stage) != self._model(base):
                continue
            run = standing(self.plan, stage, self.home).run
            first = next((p for p in _curve(run, PERPLEXITY.title) if p["step"] == 0), {})
            value = _result(run).get("base_perplexity", first.get("perplexity"))
            if value is not None:
                return float(value)
        return None

    def _sft(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        result = _result(run)
        base = self._base_of(stage)
        return {
            "parent": base.run_name if base else None,
            "perplexity": result.get("perplexity"),
            "sft_data_used": result.get("data_used"),
            "pft_data": 0,
            "cost": _cost(result),
            "sft_cost": _cost(result),
            "pft_cost": _NO_COST,
            "device": result.get("device"),
            "curves": self._curves(stage, run),
        }

    def _curves(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        """The measurements of an SFT run: of perplexity, and of what its sweetspots are of."""
        spots = (s.sweetspot for s in self.plan.stages if s.parent == stage.name and s.sweetspot)
        titles = dict.fromkeys([PERPLEXITY.title, *(parse(s).measure.title for s in spots)])
        return {title: _curve(run, title) for title in titles}

    def _sweetspot(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        sft = standing(self.plan, self.plan.stage(stage.parent or ""), self.home).run
        parent = self._parent_of(stage)
        outcome = _result(sft).get("sweetspots", {}).get(stage.sweetspot, {})
        more: dict[str, Any] = {
            "parent": parent.run_name if parent else stage.parent,
            "seed": parent.seed if parent else None,
            "device": parent.device if parent else None,
            "pft_data": 0,
            "best_measured": outcome.get("best"),
        }
        spot = _found(sft, stage.sweetspot)
        if sft is None or spot is None:
            return more
        step, title = int(spot.metadata["global_step"]), parse(spot.label).measure.title
        cost = _cost_at(sft, step)
        curve = _curve(sft, PERPLEXITY.title)
        there = (p[PERPLEXITY.title] for p in curve if p["step"] == step)
        return more | {
            "measured": spot.metadata[title],
            "perplexity": spot.metadata.get(PERPLEXITY.title) or next(there, None),
            "sft_data_used": spot.data_used,
            "cost": cost,
            "sft_cost": cost,
            "pft_cost": _NO_COST,
        }

    def _fork(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        spot = next((row for row in self.rows if self._is_start(row, stage)), None)
        return self._preference(stage, run) | _sft_part(stage, spot)

    def _is_start(self, row: Row, fork: Stage) -> bool:
        """Whether a row is the sweetspot that a fork starts from."""
        spot = self.plan.stage(row.stage_name)
        return spot.role == "sweetspot" and (spot.parent, spot.sweetspot) == (
            fork.parent,
            fork.sweetspot,
        )

    def _continued(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        return self._preference(stage, run) | _sft_part(stage, self._parent_of(stage))

    def _preference(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        result = _result(run)
        base = self._base_of(stage)
        return {
            "parent": base.run_name if base else None,
            "sft_data_used": 0,
            "pft_data": result.get("data_used"),
            "cost": _cost(result),
            "sft_cost": _NO_COST,
            "pft_cost": _cost(result),
            "device": result.get("device"),
        }


_OF_A_SEED = ("seed", "named_seed", "is_default", "is_default_but_rules", "parent")
"""Keys of a run's config that may differ between seeds of the same settings."""


def _seedless(config: Any) -> Any:
    """A run's config without what its seed and its parent change."""
    if not isinstance(config, Mapping):
        return config
    return {key: _seedless(value) for key, value in config.items() if key not in _OF_A_SEED}


def _sft_part(stage: Stage, parent: Row | None) -> dict[str, Any]:
    """What a preference run inherits from the SFT model that it continues."""
    return {
        "parent": parent.run_name if parent else stage.parent,
        "perplexity": parent.perplexity if parent else None,
        "best_measured": parent.best_measured if parent else None,
        "sft_data_used": parent.sft_data_used if parent else None,
        "sft_cost": parent.sft_cost if parent else None,
    }


def _result(run: RunDirectory | None) -> dict[str, Any]:
    """result.json of a run whose training is done."""
    return run.result if run is not None and run.done("train") else {}


def _cost(result: Mapping[str, Any]) -> Cost | None:
    if "train_tokens" not in result:
        return None
    return Cost(tokens=int(result["train_tokens"]), seconds=float(result["train_seconds"]))


def _cost_at(run: RunDirectory, step: int) -> Cost | None:
    """The logged totals of a run at the end of `step`."""
    upto = [line for line in run.metrics() if "tokens" in line and line["step"] <= step]
    if not upto:
        return None
    return Cost(tokens=int(upto[-1]["tokens"]), seconds=float(upto[-1]["seconds"]))


def _curve(run: RunDirectory | None, title: str) -> tuple[dict[str, Any], ...]:
    """The lines of a run's metrics that measure something."""
    if run is None:
        return ()
    needed = (title, "data_points_seen")
    return tuple(
        line
        for line in run.metrics()
        if all(isinstance(line.get(name), int | float) for name in needed)
    )


def _found(run: RunDirectory | None, label: str | None) -> Sweetspot | None:
    if run is None or label is None:
        return None
    try:
        return find_sweetspot(run, label)
    except (Skipped, StageFailed, UserError):
        return None


def _share(part: Any) -> float:
    """The share of a part; scores of older evaluations have no interval beside it."""
    return float(part["estimate"] if isinstance(part, dict) else part)


def _scores(evaluation: RunDirectory | None) -> tuple[Scores | None, dict[str, Any] | None]:
    """The scores and the config of a finished evaluation."""
    if evaluation is None or not evaluation.done("evaluate"):
        return None, None
    found = typed.scores(evaluation.path / "scores.json")
    if found is None:
        return None, None
    intervals = {
        int(k): (float(v["estimate"]), float(v["low"]), float(v["high"]))
        for k, v in found["pass_at_k"].items()
    }
    ranked = found.get("first_right")
    correct = found["correct"] if ranked is None else [int(rank == 0) for rank in ranked]
    scores = Scores(
        prompts=int(found["prompts"]),
        samples=int(found["samples"]) if ranked is None else 1,
        pass_at_k=dict(sorted(intervals.items())),
        correct=tuple(map(int, correct)),
        parts={name: _share(part) for name, part in found.get("parts", {}).items()},
        beyond_context=int(found.get("prompts_beyond_context", 0)),
    )
    return scores, evaluation.config
