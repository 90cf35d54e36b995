"""From run directories to rows: one for each stage of a plan, whether it has a result or not.

Reads config.json, result.json, metrics.jsonl, sweetspot metadata and scores.json, and nothing
else; what a row says does not depend on who ran the plan, when or where, apart from seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.plan import Plan, Stage, Standing, standing
from tuning.report.row import Cost, Row, Scores
from tuning.runs import atomic
from tuning.runs.errors import Skipped, StageFailed, UserError
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.store import Sweetspot, find_sweetspot

States = Mapping[str, tuple[str, str]]


def gather(plan: Plan, home: Path, states: States | None = None) -> list[Row]:
    """A row for each stage that has or makes a model, but the base's pre-training, in order."""
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
        state, note = self._state(stage, found)
        scores, evaluation_config = _scores(found.evaluation)
        common: dict[str, Any] = {
            "stage_name": stage.name,
            "run_name": found.run.name if found.run else stage.artifact or stage.name,
            "role": stage.role,
            "state": state,
            "note": note,
            "config_hash": stage.hash,
            **self._identity(stage),
            "pft_method": stage.pft_method,
            "threshold": stage.sweetspot.removeprefix("ppl-") if stage.sweetspot else None,
            "scores": scores,
            "seed": stage.seed,
            "train_size": found.train_size or stage.train_size,
            "total_budget": self._budget(stage),
            "config": found.run.config if found.run else None,
            "evaluation_config": evaluation_config,
        }
        read = {
            "base": self._base,
            "sft": self._sft,
            "reference_sft": self._sft,
            "sweetspot": self._sweetspot,
            "fork": self._fork,
            "pt": self._continued,
            "reference_pt": self._preference,
        }[stage.role]
        return Row(**(common | read(stage, found.run)))

    def _state(self, stage: Stage, found: Standing) -> tuple[str, str]:
        """The state and, where there is no result, the reason in words."""
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
        about = self.plan.about
        model: str | None = about.get("model_of", {}).get(stage.name, about.get("model"))
        return model

    def _identity(self, stage: Stage) -> dict[str, Any]:
        """What tells a row from the others: in a grid the numbers, the model and the seed."""
        about = self.plan.about
        shares = {"reference_sft": stage.train_size, "reference_pt": 0}
        if stage.role == "pt":
            shares["pt"] = self.plan.stage(stage.parent or "").train_size
        return {
            "model": self._model(stage),
            "counted": about.get("kind") in ("budget", "grid"),
            "names_model": len(about.get("models", ())) > 1,
            "names_seed": len(about.get("seeds", ())) > 1,
            "sft_share": shares.get(stage.role),
        }

    def _budget(self, stage: Stage) -> int | None:
        """The examples of the whole budget; an SFT run alone may be all of one."""
        whole = stage.train_size if stage.role == "reference_sft" else None
        size: int | None = self.plan.about.get("total_data") or stage.total_data or whole
        return size

    def _base_of(self, stage: Stage) -> Row | None:
        """The row of the base model that a stage stands on."""
        model = self._model(stage)
        return next((row for row in self.rows if row.role == "base" and row.model == model), None)

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
            "sft_cost": Cost(tokens=0, seconds=0.0),
            "pft_cost": Cost(tokens=0, seconds=0.0),
        }

    def _base_perplexity(self, base: Stage) -> float | None:
        runs = (s for s in self.plan.stages if s.role in ("sft", "reference_sft"))
        for stage in runs:
            if self._model(stage) != self._model(base):
                continue
            run = standing(self.plan, stage, self.home).run
            first = next((p for p in _curve(run) if p["step"] == 0), {})
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
            "pft_cost": Cost(tokens=0, seconds=0.0),
            "device": result.get("device"),
            "curve": _curve(run),
        }

    def _sweetspot(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        sft = standing(self.plan, self.plan.stage(stage.parent or ""), self.home).run
        above = next((row for row in self.rows if row.stage_name == stage.parent), None)
        more: dict[str, Any] = {
            "parent": above.run_name if above else stage.parent,
            "seed": above.seed if above else None,
            "device": above.device if above else None,
            "pft_data": 0,
        }
        spot = _found(sft, stage.sweetspot)
        if sft is None or spot is None:
            return more
        cost = _cost_at(sft, int(spot.metadata["global_step"]))
        return more | {
            "perplexity": spot.metadata["perplexity"],
            "sft_data_used": spot.data_used,
            "cost": cost,
            "sft_cost": cost,
            "pft_cost": Cost(tokens=0, seconds=0.0),
        }

    def _fork(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        spot = next((row for row in self.rows if self._is_start(row, stage)), None)
        return self._preference(stage, run) | {
            "parent": spot.run_name if spot else stage.parent,
            "perplexity": spot.perplexity if spot else None,
            "sft_data_used": spot.sft_data_used if spot else None,
            "sft_cost": spot.sft_cost if spot else None,
        }

    def _is_start(self, row: Row, fork: Stage) -> bool:
        """Whether a row is the sweetspot that a fork starts from."""
        spot = self.plan.stage(row.stage_name)
        return spot.role == "sweetspot" and (spot.parent, spot.sweetspot) == (
            fork.parent,
            fork.sweetspot,
        )

    def _continued(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        """Preference tuning of an SFT run: its examples and its cost come on top."""
        above = next((row for row in self.rows if row.stage_name == stage.parent), None)
        return self._preference(stage, run) | {
            "parent": above.run_name if above else stage.parent,
            "perplexity": above.perplexity if above else None,
            "sft_data_used": above.sft_data_used if above else None,
            "sft_cost": above.sft_cost if above else None,
        }

    def _preference(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        result = _result(run)
        base = self._base_of(stage)
        return {
            "parent": base.run_name if base else None,
            "sft_data_used": 0,
            "pft_data": result.get("data_used"),
            "cost": _cost(result),
            "sft_cost": Cost(tokens=0, seconds=0.0),
            "pft_cost": _cost(result),
            "device": result.get("device"),
        }


def _result(run: RunDirectory | None) -> dict[str, Any]:
    """What a run says of its training, once that is done."""
    return run.result if run is not None and run.done("train") else {}


def _cost(result: Mapping[str, Any]) -> Cost | None:
    if "train_tokens" not in result:
        return None
    return Cost(tokens=int(result["train_tokens"]), seconds=float(result["train_seconds"]))


def _cost_at(run: RunDirectory, step: int) -> Cost | None:
    """What a run had taken when `step` ended: its logged sums."""
    upto = [line for line in run.metrics() if "tokens" in line and line["step"] <= step]
    if not upto:
        return None
    return Cost(tokens=int(upto[-1]["tokens"]), seconds=float(upto[-1]["seconds"]))


def _curve(run: RunDirectory | None) -> tuple[dict[str, Any], ...]:
    if run is None:
        return ()
    return tuple(line for line in run.metrics() if "perplexity" in line)


def _found(run: RunDirectory | None, label: str | None) -> Sweetspot | None:
    if run is None or label is None:
        return None
    try:
        return find_sweetspot(run, label)
    except (Skipped, StageFailed, UserError):
        return None


def _scores(evaluation: RunDirectory | None) -> tuple[Scores | None, dict[str, Any] | None]:
    """The scores of an evaluation that is done, and the config that it had."""
    if evaluation is None or not evaluation.done("evaluate"):
        return None, None
    found = atomic.read_json(evaluation.path / "scores.json")
    if found is None:
        return None, None
    intervals = {
        int(k): (float(v["estimate"]), float(v["low"]), float(v["high"]))
        for k, v in found["pass_at_k"].items()
    }
    scores = Scores(
        prompts=int(found["prompts"]),
        samples=int(found["samples"]),
        pass_at_k=dict(sorted(intervals.items())),
        correct=tuple(int(count) for count in found["correct"]),
    )
    return scores, evaluation.config
