"""Measures perplexity while SFT runs and saves a checkpoint at every sweetspot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuning.evaluation.perplexity import Encoded, measure
from tuning.runs import atomic, manifest
from tuning.runs.rundir import RunDirectory
from tuning.runs.sweetspot import METADATA, checkpoint_name
from tuning.training.budget import data_points_seen, data_used
from tuning.training.config_training import SFTRunConfig
from tuning.training.models import write
from tuning.training.sweetspots import Rule, SweetspotRules


class PerplexityStoppingCallback(TrainerCallback):
    """Asks the rules before the first step and every `eval_steps`; stops after the last one."""

    def __init__(
        self,
        config: SFTRunConfig,
        rules: SweetspotRules,
        pool: Sequence[Encoded],
        directory: RunDirectory,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self.rules = rules
        self.pool = pool
        self.directory = directory
        self.say = say
        self.perplexity: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(0, kwargs["model"])
            for label, value in self.rules.met_by_base.items():
                self.say(f"{label}: met by the base, {value:.3g}; it makes no fork")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = state.global_step >= state.max_steps
        if state.global_step % self.config.perplexity.eval_steps and not last:
            return
        for rule in self._measure(state.global_step, kwargs["model"]):
            self._save(rule, state.global_step, kwargs["model"])
        if self.rules.finished and self.config.perplexity.early_stop:
            control.should_training_stop = True

    def _measure(self, step: int, model: Any) -> list[Rule]:
        measured = measure(model, self.pool)
        self.perplexity = measured.token_level
        self.directory.log_metrics(
            {
                "step": step,
                "perplexity": measured.token_level,
                "perplexity_sample_mean": measured.sample_mean,
                "data_points_seen": self._seen(step),
            }
        )
        return self.rules.observe(step, measured.token_level)

    def _seen(self, step: int) -> int:
        size = self.config.training.effective_batch_size
        return data_points_seen(step, self.config.dataset.train_size or 0, size)

    def _save(self, rule: Rule, step: int, model: Any) -> None:
        target = self.directory.path / checkpoint_name(rule.label)
        self.say(f"step {step}: perplexity {self.perplexity:.4g}, sweetspot {rule.label}")
        if manifest.is_whole(target):
            return
        size = self.config.training.effective_batch_size
        with atomic.whole_directory(target) as folder:
            write(model, folder)
            atomic.write_json(
                folder / METADATA,
                {
                    "threshold_type": rule.kind,
                    "threshold_value": rule.value,
                    "perplexity": self.perplexity,
                    "global_step": step,
                    "data_points_seen": self._seen(step),
                    "sft_data_used": data_used(step, self.config.dataset.train_size or 0, size),
                    "checkpoint_path": str(Path(self.directory.name) / target.name),
                    "config_hash": self.config.hash,
                },
            )
            manifest.write_manifest(folder)
