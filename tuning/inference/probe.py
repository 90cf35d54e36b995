"""Measures pass@k while a model is in training: answers to problems of the validation pool, by a
Generator that whoever trains provides, graded by the task.

The problems, and the seeds of what is sampled, are the same at every measurement, so that what
changes between two of them is the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from tuning.data.train_dataset import Row
from tuning.evaluation.config import PassAtKConfig
from tuning.evaluation.intervals import mean_interval
from tuning.evaluation.pass_at_k import per_prompt
from tuning.inference.generator import Generator
from tuning.inference.sampling import room_for
from tuning.runs import interrupt
from tuning.sweetspots.config import PassAtKStoppingConfig
from tuning.sweetspots.monitor import Measurement
from tuning.tasks.registry import task


class PassAtKProbe:
    """Measures pass@k on some problems, repeatedly."""

    def __init__(
        self, problems: Sequence[Row], task_name: str, config: PassAtKStoppingConfig, run_hash: str
    ) -> None:
        """`problems`: rows with what the task grades by; `run_hash` seeds the sampling."""
        self.problems = problems
        self.task = task(task_name)
        self.title = config.measure.title
        self.k = config.pass_at_k
        self.sampling = sampling_of(config, len(problems))
        self.run_hash = run_hash
        self._warned = False

    def measure(self, generator: Generator, *, to_the_end: bool = False) -> Measurement:
        """pass@k of the model that a generator has, with its 95% interval over problems.

        Raises Interrupted between portions of answers if asked to stop, unless `to_the_end`.
        """
        prompts = [row["prompt"] for row in self.problems]
        if not self._warned:
            room_for(generator, prompts, self.sampling.max_new_tokens, "validation")
            self._warned = True
        answers: dict[int, list[str]] = {}
        portions = generator.answers(prompts, self.sampling, self.run_hash)
        with contextlib.closing(portions):
            for portion in portions:
                answers |= dict(portion)
                if not to_the_end:
                    interrupt.check()
        grade = self.task.grade
        correct = [
            sum(grade(text, row).right for text in answers[place])
            for place, row in enumerate(self.problems)
        ]
        found = mean_interval(per_prompt(correct, self.sampling.n_samples, self.k))
        title = self.title
        metrics = {title: found.estimate, f"{title}_low": found.low, f"{title}_high": found.high}
        return Measurement(value=found.estimate, metrics=metrics)


def sampling_of(config: PassAtKStoppingConfig, problems: int) -> PassAtKConfig:
    """The settings of a measurement as a Generator takes them."""
    return PassAtKConfig(
        prompts=problems,
        n_samples=config.pass_at_k_samples,
        k_values=(config.pass_at_k,),
        max_new_tokens=config.pass_at_k_max_new_tokens,
        temperature=config.pass_at_k_temperature,
        batch_size=config.pass_at_k_batch_size,
        backend=config.pass_at_k_backend,
        gpu_memory_utilization=config.vllm_gpu_memory_utilization,
    )


@contextlib.contextmanager
def kept_random() -> Iterator[None]:
    """Leave the random numbers of Python, numpy and torch as they were before the block: engines
    seed them when they start.
    """
    import random

    import numpy as np
    import torch

    threads = torch.get_num_threads()
    drawn: Any = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
            torch.set_num_threads(threads)
