"""From run directories to rows: one for each stage of a plan, whether it has a result or not.

Reads config.json, result.json, metrics.jsonl, sweetspot metadata and scores.json, and nothing
else; what a row says does not depend on who ran the plan, when or where, apart from seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuning.runs import atomic
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.rundir import RunDirectory
from tuning.runs.stages import Plan, Stage, Standing, standing
from tuning.runs.sweetspot import Skipped, Sweetspot, find_sweetspot

States = Mapping[str, tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What scores.json holds."""

    prompts: int
    samples: int
    pass_at_k: dict[int, tuple[float, float, float]]
    """k -> (estimate, low, high), k in ascending order."""
    correct: tuple[int, ...]
    """Right answers among `samples`, for each prompt."""

    @property
    def largest_k(self) -> int:
        """The largest k of pass@k."""
        return max(self.pass_at_k)

    @property
    def first(self) -> tuple[float, float, float]:
        """pass@1 with its interval."""
        return self.pass_at_k[1]

    @property
    def per_prompt(self) -> list[float]:
        """pass@1 of each prompt."""
        return [count / self.samples for count in self.correct]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took: tokens that the trainer counted, and seconds on its device."""

    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage of an experiment and what came of it; None stands for what is not known."""

    stage_name: str
    """The name of the stage in the plan."""
    run_name: str
    """The run's directory; of a fork whose size is not known yet, the planned name."""
    role: str
    """base, sft, sweetspot, fork, reference_sft or reference_pt."""
    state: str
    """done, skipped, failed, blocked, running or pending."""
    note: str
    """Why there is no result; "" where there is one."""
    config_hash: str
    pft_method: str | None = None
    parent: str | None = None
    """`run_name` of the row that this one starts from."""
    threshold: str | None = None
    """`2.0`, or `2@0.02` for a patience rule."""
    perplexity: float | None = None
    """On the validation pool: of an SFT run at its end, of a sweetspot at its step, of the base
    before the first step. A preference run measures none: a fork has that of the checkpoint that
    it starts from."""
    sft_data_used: int | None = None
    """Different SFT examples behind this model."""
    pft_data: int | None = None
    """Different preference examples behind this model."""
    cost: Cost | None = None
    """Of this run alone; of a sweetspot, of its SFT run up to its step; of the base, of
    pre-training."""
    sft_cost: Cost | None = None
    """The part of SFT in making this model from the base."""
    pft_cost: Cost | None = None
    """The part of preference tuning in making this model from the base."""
    scores: Scores | None = None
    seed: int | None = None
    train_size: int | None = None
    """What the run was given, which early stopping may not use up."""
    total_budget: int | None = None
    device: str | None = None
    config: dict[str, Any] | None = None
    """config.json of the run."""
    evaluation_config: dict[str, Any] | None = None
    curve: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """The perplexity measurements of an SFT run: step, perplexity, data_points_seen."""

    @property
    def total_data(self) -> int | None:
        """Examples behind this model, SFT and preference together."""
        if self.sft_data_used is None or self.pft_data is None:
            return None
        return self.sft_data_used + self.pft_data

    @property
    def missing(self) -> bool:
        """Whether the row has no result, for the reason in `note`."""
        return self.state != "done"

    @property
    def label(self) -> str:
        """What people call it."""
        method = (self.pft_method or "").upper()
        if self.role == "fork":
            return f"{method} from {self.spot}"
        if self.role == "sweetspot":
            return f"SFT to {self.spot}"
        return {
            "base": "base model",
            "sft": "SFT",
            "reference_sft": "SFT, whole budget",
            "reference_pt": f"{method} only, whole budget",
        }[self.role]

    @property
    def prose(self) -> str:
        """What it is called in a sentence."""
        on = "on the whole budget"
        method = (self.pft_method or "").upper()
        names = {
            "base": "the base model",
            "reference_sft": f"SFT {on}",
            "reference_pt": f"{method} alone {on}",
        }
        return names.get(self.role, self.label)

    @property
    def spot(self) -> str:
        """The sweetspot in words: `ppl 2.0` or `patience 2@0.02`."""
        kind = "patience" if "@" in (self.threshold or "") else "ppl"
        return f"{kind} {self.threshold}"


def of_role(rows: Sequence[Row], *roles: str) -> list[Row]:
    """The rows of some roles."""
    return [row for row in rows if row.role in roles]


def same_weights(spot: Row, sft: Row) -> bool:
    """Whether an SFT run ended at a sweetspot, so that the two are one model."""
    if spot.role != "sweetspot" or spot.cost is None or sft.cost is None:
        return False
    return spot.cost.tokens == sft.cost.tokens


def gather(plan: Plan, home: Path, states: States | None = None) -> list[Row]:
    """A row for each stage but pre-training, in the order of the plan."""
    rows: list[Row] = []
    for stage in plan.stages:
        if stage.role != "pretrain":
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
            "pft_method": stage.pft_method,
            "threshold": stage.sweetspot.removeprefix("ppl-") if stage.sweetspot else None,
            "scores": scores,
            "seed": stage.seed,
            "train_size": found.train_size or stage.train_size,
            "total_budget": self.plan.about.get("total_data") or stage.total_data,
            "config": found.run.config if found.run else None,
            "evaluation_config": evaluation_config,
        }
        read = {
            "base": self._base,
            "sft": self._sft,
            "reference_sft": self._sft,
            "sweetspot": self._sweetspot,
            "fork": self._fork,
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

    def _one(self, role: str) -> Row | None:
        return next((row for row in self.rows if row.role == role), None)

    def _base(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        pretraining = next((s for s in self.plan.stages if s.role == "pretrain"), None)
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
            "perplexity": self._base_perplexity(),
            "sft_data_used": 0,
            "pft_data": 0,
            "sft_cost": Cost(tokens=0, seconds=0.0),
            "pft_cost": Cost(tokens=0, seconds=0.0),
        }

    def _base_perplexity(self) -> float | None:
        for stage in self.plan.stages:
            if stage.role not in ("sft", "reference_sft"):
                continue
            run = standing(self.plan, stage, self.home).run
            first = next((p for p in _curve(run) if p["step"] == 0), {})
            value = _result(run).get("base_perplexity", first.get("perplexity"))
            if value is not None:
                return float(value)
        return None

    def _sft(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        result = _result(run)
        base = self._one("base")
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
        label = (stage.sweetspot or "").removeprefix("ppl-")
        spots = (row for row in self.rows if row.role == "sweetspot" and row.threshold == label)
        spot = next(spots, None)
        return self._preference(stage, run) | {
            "parent": spot.run_name if spot else stage.parent,
            "perplexity": spot.perplexity if spot else None,
            "sft_data_used": spot.sft_data_used if spot else None,
            "sft_cost": spot.sft_cost if spot else None,
        }

    def _preference(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any]:
        result = _result(run)
        base = self._one("base")
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
