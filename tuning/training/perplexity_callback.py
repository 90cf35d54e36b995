"""Measures perplexity while SFT runs and saves a checkpoint at every sweetspot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuning.evaluation.perplexity import Encoded, measure
from tuning.runs.rundir import RunDirectory
from tuning.training.config_training import SFTRunConfig
from tuning.training.models import write
from tuning.training.perplexity_watch import PerplexityWatch
from tuning.training.sweetspots import SweetspotRules


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
        self.pool = pool
        self.watch = PerplexityWatch(config, rules, directory, say)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(0, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.watch.due(state.global_step, state.max_steps):
            self._measure(state.global_step, kwargs["model"])
            control.should_training_stop |= self.watch.stops

    def _measure(self, step: int, model: Any) -> None:
        fired = self.watch.observe(step, measure(model, self.pool))
        for rule in self.watch.missing(fired):
            self.watch.save(rule, step, lambda folder: write(model, folder))
