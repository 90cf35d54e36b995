"""Sweetspot and budget experiments that nobody trained: the plan is real, the run directories are
written through the real classes, and the numbers are made up.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuning.evaluation.intervals import mean_interval
from tuning.evaluation.pass_at_k import per_prompt
from tuning.evaluation.scoring import first_scores
from tuning.experiments.budget import Budget, budget_plan
from tuning.experiments.sweetspot import Wanted, sweetspot_plan
from tuning.plan import Plan, Stage, first_share, standing
from tuning.runs import atomic, manifest
from tuning.runs.measured import FILE, PHASE, told_by
from tuning.runs.rundir import Identity, RunDirectory, claim
from tuning.sweetspots.rules import Rules, parse
from tuning.sweetspots.store import METADATA, checkpoint_name

BATCH = 32
EVERY = 5


def wanted(**changes: Any) -> Wanted:
    """The experiment of `make demo`, with changes."""
    values: dict[str, Any] = {
        "model": "tiny",
        "dataset": "arith",
        "task": "math",
        "total_data": 3000,
        "sft_data": 2000,
        "do_sft": True,
        "do_dpo": True,
        "do_inference": True,
        "do_evaluation": True,
        "experiment": "trial",
    }
    rules = {"perplexity_thresholds": changes.pop("thresholds", (2.0, 1.6, 1.4))}
    if "patience" in changes:
        rules["perplexity_patience"] = changes.pop("patience")
    return Wanted(**(values | {"sft_values": rules} | changes))


@dataclass
class Fake:
    """Writes the runs of an experiment; `scores` maps a role, or role and threshold, to pass@1."""

    home: Path
    plan: Plan
    scores: dict[str, float]
    base_perplexity: float = 8.9
    floor: float = 1.3
    prompts: int = 200
    samples: int = 8
    seconds: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    in_form: dict[str, float] = field(default_factory=dict)
    """The share of answers in form, by run."""
    beyond_context: int = 0

    def write(self, *roles: str) -> None:
        """Every stage, or those of some roles, in the order of the plan."""
        for stage in self.plan.stages:
            if not roles or stage.role in roles:
                self.write_stage(stage)

    def write_stage(self, stage: Stage) -> None:
        """Train and evaluate one stage, as far as it can be."""
        found = standing(self.plan, stage, self.home)
        if found.state == "skipped":
            return
        if stage.role == "pretrain":
            with self._claim(stage, stage.name) as run, run.phase("train"):
                run.write_result(global_step=1500, train_tokens=24_500_000, train_seconds=95.2)
        elif stage.role in ("sft", "reference_sft"):
            self._sft(stage)
        elif found.run is not None:
            self._preference(stage, found.run.name, found.train_size or 0)
        self._evaluate(stage)
        if "measure" in stage.phases:
            self._measure(stage)

    def _measure(self, stage: Stage) -> None:
        """before_after.json, without its figures."""
        with self._claim(stage, stage.name) as run, run.phase(PHASE):
            told = told_by(stage.measure_hash or "", stage.first_prompts)
            atomic.write_json(run.path / FILE, told)

    def _claim(self, stage: Stage, name: str) -> Any:
        settings: dict[str, Any] = {"model": {"model": "tiny"}, "seed": stage.seed}
        identity = Identity(
            run_name=name, kind=stage.role, hash=stage.hash, hashed={},
            settings=settings | self.settings | _settings(stage), artifact="adapter",
        )  # fmt: skip
        return claim(self.home / "models", identity)

    def _sft(self, stage: Stage) -> None:
        size = stage.train_size or 0
        steps = 2 * math.ceil(size / BATCH)
        labels = [s.sweetspot or "" for s in self.plan.stages if s.role == "sweetspot"]
        rules = Rules([parse(label) for label in labels if stage.role == "sft"])
        with self._claim(stage, stage.name) as run, run.phase("train"):
            step = 0
            for step in range(steps + 1):
                if step % EVERY == 0 or step == steps:
                    perplexity = self._perplexity(step)
                    log = {"step": step, "perplexity": perplexity, "data_points_seen": step * BATCH}
                    run.log_metrics(log | {"perplexity_sample_mean": perplexity + 0.03})
                    for rule in rules.observe(step, perplexity):
                        self._checkpoint(run, rule, step, perplexity, size)
                if step:
                    run.log_metrics({"step": step, "loss": 1.0, **self._counted(step)})
                if rules.finished:
                    break
            seen = step * BATCH
            counted = self._counted(step)
            run.write_result(
                global_step=step, train_size=size, data_points_seen=seen,
                data_used=min(seen, size), train_tokens=counted["tokens"],
                train_seconds=counted["seconds"], device="cpu", perplexity=rules.history[-1],
                base_perplexity=rules.history[0], sweetspots=rules.outcome(),
            )  # fmt: skip

    def _perplexity(self, step: int) -> float:
        wave = 0.03 * math.sin(step)
        return self.floor + (self.base_perplexity - self.floor) * math.exp(-step / 14) + wave

    def _counted(self, step: int) -> dict[str, Any]:
        return {"tokens": step * BATCH * 71, "seconds": round(step * 0.41 * self.seconds, 2)}

    def _checkpoint(
        self, run: RunDirectory, rule: Any, step: int, perplexity: float, size: int
    ) -> None:
        with atomic.whole_directory(run.path / checkpoint_name(rule.label)) as folder:
            metadata = {
                **rule.metadata(), "perplexity": perplexity, "global_step": step,
                "data_points_seen": step * BATCH,
                "sft_data_used": min(step * BATCH, size), "checkpoint_path": "", "config_hash": "",
            }  # fmt: skip
            atomic.write_json(folder / METADATA, metadata)
            manifest.write_manifest(folder)

    def _preference(self, stage: Stage, name: str, size: int) -> None:
        with self._claim(stage, name) as run, run.phase("train"):
            run.write_result(
                global_step=math.ceil(size / BATCH), train_size=size, data_points_seen=size,
                data_used=size, train_tokens=size * 155, device="cpu",
                train_seconds=round(size * 0.024 * self.seconds, 2),
            )  # fmt: skip

    def _evaluate(self, stage: Stage) -> None:
        found = standing(self.plan, stage, self.home).evaluation
        label = (stage.sweetspot or "").removeprefix("ppl-")
        keys = (stage.name, f"{stage.role}-{label}-{stage.pft_method}", f"{stage.role}-{label}")
        keys += (f"{stage.role}-{stage.pft_method}", stage.role)
        share = next((self.scores[key] for key in keys if key in self.scores), None)
        if found is None or share is None:
            return
        correct = self._correct(share)
        identity = Identity(
            run_name=stage.artifact or found.name, kind="evaluation",
            hash=stage.evaluation_hash or "", hashed={},
            settings={"sampling": {"temperature": 0.7, "prompts": self.prompts}},
        )  # fmt: skip
        with claim(self.home / "outputs" / stage.task, identity) as run:
            if stage.first_prompts is not None:
                with run.phase(first_share(stage.first_prompts), last=False):
                    part = self._scores(run.name, correct[: stage.first_prompts])
                    atomic.write_json(run.path / first_scores(stage.first_prompts), part)
                return
            with run.phase("infer", last=False):
                pass
            with run.phase("evaluate"):
                atomic.write_json(run.path / "scores.json", self._scores(run.name, correct))

    def _correct(self, share: float) -> list[int]:
        """Right answers a prompt: a prompt is hard or easy for every model alike."""
        draw = random.Random(7)
        other = random.Random(share)
        counts = []
        for _ in range(self.prompts):
            ease = draw.gauss(0, 2.5)
            chance = 1 / (1 + math.exp(-(ease + 3.2 * math.log(share / (1 - share)) / 1.7)))
            counts.append(sum(other.random() < chance for _ in range(self.samples)))
        return counts

    def _scores(self, name: str, correct: list[int]) -> dict[str, Any]:
        intervals = {}
        for k in (k for k in (1, 2, 4, 8) if k <= self.samples):
            value = mean_interval(per_prompt(correct, self.samples, k))
            intervals[str(k)] = {
                "estimate": round(value.estimate, 6),
                "low": round(value.low, 6),
                "high": round(value.high, 6),
            }
        return {
            "run_name": name, "prompts": len(correct), "samples": self.samples,
            "pass_at_k": intervals, "correct": correct,
            "prompts_beyond_context": self.beyond_context,
            "parts": {"format": {"estimate": self.in_form.get(name, 0.98)}},
        }  # fmt: skip


def _settings(stage: Stage) -> dict[str, Any]:
    if stage.role == "pretrain":
        return {"training": {"total_steps": 1500, "learning_rate": 0.002}}
    lora = {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0}
    if stage.pft_method:
        training = {"num_train_epochs": 1.0, "learning_rate": 1e-4, "beta": 0.1, "seed": 42}
    else:
        training = {"num_train_epochs": 2.0, "learning_rate": 5e-3, "seed": 42}
    data = {"dataset": "arith", "dataset_type": "pt" if stage.pft_method else "sft"}
    return {
        "dataset": data | {"train_size": stage.train_size},
        "task": "math",
        "lora": lora,
        "training": training | {"effective_batch_size": BATCH, "warmup_ratio": 0.1},
    }


REALISTIC = {
    "base": 0.01,
    "sweetspot-2.0": 0.30,
    "sweetspot-1.6": 0.45,
    "sweetspot-1.4": 0.55,
    "sft": 0.56,
    "fork-2.0-dpo": 0.35,
    "fork-1.6-dpo": 0.47,
    "fork-1.4-dpo": 0.565,
    "fork-2.0-kto": 0.33,
    "fork-1.6-kto": 0.49,
    "fork-1.4-kto": 0.60,
    "fork-2.0-grpo": 0.45,
    "fork-1.6-grpo": 0.56,
    "fork-1.4-grpo": 0.72,
    "reference_sft": 0.66,
    "reference_pt": 0.02,
}


def fake(home: Path, scores: dict[str, float] | None = None, **changes: Any) -> Fake:
    """A fake experiment under `home`, which must be TUNING_HOME; nothing is written yet."""
    plan = sweetspot_plan(wanted(**changes))
    return Fake(home=home, plan=plan, scores=REALISTIC if scores is None else scores)


def budget(**changes: Any) -> Budget:
    """A budget of 1,000 examples divided in four ways, with changes."""
    values: dict[str, Any] = {
        "task": "math",
        "dataset": "arith",
        "sft_ratios": ("0", "0.25", "0.75", "1"),
        "base_models": ("tiny",),
        "pft_methods": ("dpo",),
        "do_training": True,
        "do_sft_first": True,
        "do_inference": True,
        "do_evaluation": True,
        "experiment": "trial",
    }
    return Budget(**(values | changes))


def fake_budget(home: Path, scores: dict[str, float] | None = None, **changes: Any) -> Fake:
    """A fake budget experiment under `home`, which must be TUNING_HOME; nothing is written yet.

    `scores` maps the name or the role of a stage to pass@1; the others follow from their sizes.
    """
    plan, _ = budget_plan(budget(**changes))
    return Fake(home=home, plan=plan, scores=made_up(plan) | (scores or {}))


def made_up(plan: Plan) -> dict[str, float]:
    """pass@1 by the name of the stage: more SFT is better, and some preference tuning too."""
    found = {}
    for stage in plan.stages:
        if stage.role == "base":
            found[stage.name] = 0.02
        if stage.total_data is not None:
            share = 1.0 if stage.role == "reference_sft" else 0.0
            if stage.role == "pt":
                share = 1 - (stage.train_size or 0) / stage.total_data
            lift = {"dpo": 0.35, "kto": 0.25, "grpo": 0.5}.get(stage.pft_method or "", 0.0)
            size = math.log10(stage.total_data) / 10
            wave = 0.001 * ((stage.seed or 0) % 7) + 0.0001 * len(stage.name)
            found[stage.name] = 0.02 + size * (1.6 * share + lift * share * (1 - share) * 4) + wave
    return found
