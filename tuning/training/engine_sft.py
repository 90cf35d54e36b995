"""Supervised fine-tuning of all weights on the engine: response-only loss, examples packed up to a
number of tokens, sweetspots by the same rules as in SFT with TRL.

Under torchrun every process calls `train()`; rank 0 writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch

from tuning.engine import checkpoint, loop, model, ranks
from tuning.engine.checkpoint import TrainingState
from tuning.engine.config import LoopConfig, OutputConfig
from tuning.engine.export import save_model, write_model
from tuning.engine.losses import loss_function
from tuning.engine.perplexity import PoolPerplexity, rows_of
from tuning.engine.reporting import Reporter
from tuning.engine.setup import batches_of, open_model
from tuning.inference.beside import BESIDE, Beside
from tuning.inference.probe import PassAtKProbe
from tuning.runs import manifest
from tuning.runs.atomic import read_object
from tuning.runs.errors import StageFailed
from tuning.runs.rundir import SHORT, RunDirectory
from tuning.sweetspots.monitor import Measurement, Monitor, Monitors
from tuning.training.config_training import SFTRunConfig
from tuning.training.pools import problems, sft_pools
from tuning.weights import loading, reading
from tuning.weights.artifact import Artifact, artifact_of
from tuning.weights.base import MODEL

RULES = "sweetspot_rules"
"""The key under which a checkpoint holds the state of the rules."""


def train(config: SFTRunConfig, directory: RunDirectory, report_to: list[str]) -> None:
    """Train, or resume, the run in `directory` and write its model there."""
    steps, compute, loss = config.steps, config.compute, loss_function(config.loss)
    settings = loop_config(config, steps)
    base = artifact_of(config.model)
    tokenizer = loading.open_tokenizer(base)
    rows, pool = sft_pools(config, tokenizer)
    layout = ranks.layout(compute.sep_size)
    spread, cost = open_model(
        lambda dtype: reading.read(base.base, dtype),
        lambda dtype: model.skeleton(reading.read_config(base.base), dtype),
        layout,
        compute,
        osft_config=config.engine,
        precision=settings.precision,
    )
    size = config.training.effective_batch_size
    batches = batches_of(
        rows_of(rows), size, layout, compute, cost, seed=settings.seed, longest=None
    )

    saved = _saved(directory)
    monitors = config.monitors(directory)
    if saved:
        monitors.load(saved["extra"][RULES])
    perplexity = PoolPerplexity(pool, batches, spread, settings.precision)
    dtype = loading.dtype_of(base.dtype)
    sweetspots = _Sweetspots(config, monitors, perplexity, tokenizer, dtype, base, directory)
    # A run that the rules had ended before it was killed has no step left.
    left = saved["step"] if monitors.stops else steps
    name = config.run_name.removesuffix(f"-{config.hash[:SHORT]}")
    reporter = Reporter(
        directory,
        OutputConfig(),
        f"{name}_{config.hash[:SHORT]}",
        steps=steps,
        done=saved.get("step", 0),
        report_to=report_to,
    )
    peak = loop.peak_flops(spread, settings.precision)
    with reporter, closing(sweetspots):
        state = loop.train(
            spread,
            batches,
            settings,
            steps=left,
            directory=directory.path,
            save_every=config.training.save_steps,
            loss_function=loss,
            flops=cost,
            peak_flops=peak,
            on_step=reporter.step,
            after_step=sweetspots.after_step,
            should_stop=ranks.agreed_to_stop,
        )
    _finish(config, directory, state, monitors, tokenizer)


def loop_config(config: SFTRunConfig, steps: int) -> LoopConfig:
    """The settings of an SFT run as the loop takes them: the schedule and AdamW of transformers."""
    t = config.training
    warms = t.lr_scheduler != "constant"
    constant = t.lr_scheduler.startswith("constant")
    return LoopConfig(
        max_lr=t.learning_rate,
        min_lr=0.0,
        lr_scheduler="constant" if constant else cast(Any, t.lr_scheduler),
        warmup_steps=math.ceil(steps * t.warmup_ratio) if warms else 0,
        weight_decay=t.weight_decay,
        adam_beta2=0.999,
        grad_clip_value=t.max_grad_norm,
        router_aux_loss_coef=0.0,
        seed=t.seed,
    )


def _first() -> bool:
    """Whether this is rank 0, which writes."""
    return ranks.rank() == 0


def _saved(directory: RunDirectory) -> dict[str, Any]:
    """The counts of the checkpoint to resume from; {} at the start."""
    newest = manifest.newest_whole(directory.path) if _first() else None
    found: dict[str, Any] | None = read_object(newest / checkpoint.STATE) if newest else None
    if found is None and _first():
        directory.rewind_metrics(-1)
    return ranks.from_first(found or {})


class _Sweetspots:
    """Called between steps: measure perplexity and pass@k, apply the rules, save sweetspots."""

    def __init__(
        self,
        config: SFTRunConfig,
        monitors: Monitors,
        perplexity: PoolPerplexity,
        tokenizer: Any,
        dtype: torch.dtype,
        base: Artifact,
        directory: RunDirectory,
    ) -> None:
        self.monitors = monitors
        self.perplexity = perplexity
        self.steps = config.steps
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.pass_at_k = _PassAtK(config, base, directory) if monitors.pass_at_k else None

    def after_step(self, state: TrainingState) -> bool:
        """Measure what it is time for; True after the last rule has fired. The time counts as
        training, as it does with TRL.
        """
        due = [monitor for monitor in self.monitors.all if monitor.due(state.step, self.steps)]
        if not due:
            return False
        started = time.perf_counter()
        for monitor in due:
            self._measure(monitor, state)
        state.extra[RULES] = self.monitors.state()
        state.seconds += time.perf_counter() - started
        return self.monitors.stops

    def _measure(self, monitor: Monitor, state: TrainingState) -> None:
        monitor.begin(state.step, self.steps)

        def write(folder: Path) -> None:
            write_model(state.spread, folder, self.dtype, self.tokenizer)

        if monitor is self.monitors.pass_at_k:
            assert self.pass_at_k is not None
            measured = self.pass_at_k.measure(write)
        else:
            measured = self.perplexity.measure().measurement
        fired = monitor.observe(state.step, measured)
        for rule in ranks.from_first(monitor.missing(fired)):
            if _first():
                monitor.save(rule, state.step, write)
            else:
                write(monitor.target(rule))

    def close(self) -> None:
        """End what answered."""
        if self.pass_at_k is not None:
            self.pass_at_k.beside.close()


class _PassAtK:
    """pass@k of the model as it is written to a folder: an engine beside the training answers."""

    def __init__(self, config: SFTRunConfig, base: Artifact, directory: RunDirectory) -> None:
        part = config.pass_at_k
        self.probe = PassAtKProbe(problems(config), config.task, part, config.hash)
        keep = part.use_persistent_vllm
        self.beside = Beside(base, self.probe.sampling, directory.path / BESIDE, keep=keep)

    def measure(self, write: Callable[[Path], None]) -> Measurement:
        """What rank 0 measures; all ranks must call this, and write together."""
        if not _first():
            write(self.beside.folder)
            return ranks.from_first(None)
        with self.beside.generator(write) as generator:
            return ranks.from_first(self.probe.measure(generator, to_the_end=True))


def _finish(
    config: SFTRunConfig,
    directory: RunDirectory,
    state: TrainingState,
    monitors: Monitors,
    tokenizer: Any,
) -> None:
    """Write the model and result.json; checkpoints are deleted when the run is marked done."""
    dtype = loading.dtype_of(config.model.dtype)
    save_model(state.spread, directory.path / MODEL, dtype, tokenizer)
    if not _first():
        return
    size = config.train_size
    seen, planned = state.samples, config.spending.seen(state.step)
    if seen != planned:
        raise StageFailed(f"{seen} examples were trained on by step {state.step}, not {planned}.")
    directory.write_result(
        global_step=state.step,
        train_size=size,
        data_points_seen=seen,
        data_used=min(seen, size),
        train_tokens=state.tokens,
        train_seconds=round(state.seconds, 2),
        device=ranks.device().type,
        processes=ranks.world_size(),
        **monitors.result,
    )
