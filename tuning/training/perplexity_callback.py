"""Measures perplexity while SFT runs under TRL, and saves a checkpoint at every sweetspot."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuning.engine import ranks
from tuning.evaluation.perplexity import PerplexityProbe, from_sums, sums
from tuning.sweetspots.monitor import Measurement, Monitor, Probe
from tuning.training import sharded
from tuning.weights.loading import write


class SharedPerplexity(PerplexityProbe):
    """Measures the perplexity of a pool, of which each rank takes its part of the batches."""

    def measure(self, model: Any) -> Measurement:
        """The perplexity of the whole pool, the same on all ranks."""
        parts = ranks.gather(sums(model, self.pool, at=ranks.rank(), of=ranks.world_size()))
        losses = [loss for part, _ in parts for loss in part]
        counts = [count for _, part in parts for count in part]
        return from_sums(losses, counts).measurement


class PerplexityStoppingCallback(TrainerCallback):
    """Measures before the first step and every `eval_steps`; stops after the last rule. All ranks
    measure, with the same result, and rank 0 saves.
    """

    def __init__(self, monitor: Monitor, probe: Probe) -> None:
        self.monitor = monitor
        self.probe = probe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(0, state.max_steps, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor.due(state.global_step, state.max_steps):
            self._measure(state.global_step, state.max_steps, kwargs["model"])
            control.should_training_stop |= self.monitor.stops

    def _measure(self, step: int, steps: int, model: Any) -> None:
        self.monitor.begin(step, steps)
        fired = self.monitor.observe(step, self.probe.measure(model))
        for rule in ranks.from_first(self.monitor.missing(fired)):
            state = sharded.whole_state(model)
            if ranks.rank() == 0:
                self.monitor.save(rule, step, partial(write, model, state=state))
