"""Measure perplexity and pass@k while SFT runs under TRL, save a checkpoint at every sweetspot, and
stop when all are reached.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuning.engine import ranks
from tuning.evaluation.perplexity import PerplexityProbe, from_sums, in_order, part_of_sums
from tuning.inference.generator import Generator
from tuning.inference.probe import PassAtKProbe
from tuning.runs.errors import Interrupted
from tuning.sweetspots.monitor import Measurement, Monitor, Monitors, Probe
from tuning.training import sharded
from tuning.weights.loading import write


class _Stopping(TrainerCallback):
    """Measures before the first step and at every step at which the monitor wants it."""

    monitor: Monitor

    def __init__(self, monitors: Monitors) -> None:
        self.monitors = monitors

    def measure(self, model: Any, *, last: bool) -> Measurement:
        """Measure; Interrupted if asked to stop meanwhile, unless it is the `last` time."""
        raise NotImplementedError

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.observe(0, state.max_steps, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.monitor.due(state.global_step, state.max_steps):
            return
        try:
            self.observe(state.global_step, state.max_steps, kwargs["model"])
        except Interrupted:
            self.monitor.owed = True
            control.should_save = control.should_training_stop = True
        else:
            control.should_training_stop |= self.monitors.stops

    def observe(self, step: int, steps: int, model: Any) -> None:
        """Measure after `step` of `steps` optimizer steps, and save the sweetspots that it reaches;
        Interrupted as `measure` does. All ranks measure, with the same result, and rank 0 saves.
        """
        self.monitor.begin(step, steps)
        fired = self.monitor.observe(step, self.measure(model, last=step >= steps))
        for rule in ranks.from_first(self.monitor.missing(fired)):
            state = sharded.whole_state(model)
            if ranks.rank() == 0:
                self.monitor.save(rule, step, partial(write, model, state=state))


class SharedPerplexity(PerplexityProbe):
    """Measures the perplexity of a pool, of which each rank takes its part of the batches."""

    def measure(self, model: Any) -> Measurement:
        """The perplexity of the whole pool, the same on all ranks."""
        own = part_of_sums(model, self.pool, at=ranks.rank(), of=ranks.world_size())
        found = {place: one for part in ranks.gather(own) for place, one in part.items()}
        return from_sums(*in_order(found)).measurement


class PerplexityStoppingCallback(_Stopping):
    """Measures perplexity every `eval_steps`."""

    def __init__(self, monitors: Monitors, probe: Probe) -> None:
        super().__init__(monitors)
        self.monitor = monitors.perplexity
        self.probe = probe

    def measure(self, model: Any, *, last: bool) -> Measurement:
        """The perplexity of the validation pool."""
        return self.probe.measure(model)


class PassAtKStoppingCallback(_Stopping):
    """Measures pass@k every `pass_at_k_every` steps, by answers that are sampled to problems."""

    def __init__(
        self,
        monitors: Monitors,
        probe: PassAtKProbe,
        generator: Callable[[Any], AbstractContextManager[Generator]],
    ) -> None:
        """`generator`: has the model that it is given, and leaves it and the random numbers as they
        are.
        """
        super().__init__(monitors)
        assert monitors.pass_at_k is not None
        self.monitor = monitors.pass_at_k
        self.probe = probe
        self.generator = generator

    def measure(self, model: Any, *, last: bool) -> Measurement:
        """pass@k of the model as it is now."""
        with self.generator(model) as generator:
            return self.probe.measure(generator, to_the_end=last)
