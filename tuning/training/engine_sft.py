"""Supervised fine-tuning of all weights on the engine: response-only loss, examples packed by a
budget of tokens, sweetspots on the way by the rules that SFT with TRL has.

Under torchrun every process calls `train()`; the first one writes.
"""

from __future__ import annotations

import math
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch

from tuning.data.budget import total_steps
from tuning.engine import checkpoint, loop, model, ranks
from tuning.engine.checkpoint import TrainingState
from tuning.engine.config import ComputeConfig, EngineConfig, PretrainConfig
from tuning.engine.export import save_model, write_model
from tuning.engine.perplexity import PoolPerplexity, rows_of
from tuning.engine.pretraining import batches_of, open_model
from tuning.engine.reporting import Reporter
from tuning.runs import manifest
from tuning.runs.atomic import read_json
from tuning.runs.rundir import SHORT, RunDirectory
from tuning.sweetspots.monitor import Monitor
from tuning.training.config_training import SFTRunConfig
from tuning.training.pools import sft_pools
from tuning.weights import loading, reading
from tuning.weights.base import MODEL, base_location

RULES = "sweetspot_rules"
"""Where a checkpoint has how far the rules are."""


def train(config: SFTRunConfig, directory: RunDirectory, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    steps = _steps(config)
    t, engine = training_config(config, steps), engine_config(config)
    tokenizer = loading.load_tokenizer(config.model)
    rows, pool = sft_pools(config, tokenizer)
    layout = ranks.layout(engine.sep_size)
    source = base_location(config.model)
    spread, cost = open_model(
        lambda: reading.read(source, torch.float32),
        lambda: model.skeleton(reading.read_config(source), torch.float32),
        t, engine, layout,
    )  # fmt: skip
    size = config.training.effective_batch_size
    batches = batches_of(rows_of(rows), size, t, layout, cost, None)

    saved = _saved(directory)
    monitor = Monitor(config.perplexity, config.spending, directory, config.hash)
    if saved:
        monitor.rules.load(saved["extra"][RULES])
    perplexity = PoolPerplexity(pool, batches, spread, t)
    sweetspots = _Sweetspots(
        monitor, perplexity, steps, tokenizer, loading.dtype_of(config.model)
    )
    # What was stopped early, and then killed before it was done, has no step left.
    left = saved["step"] if monitor.stops else steps
    name = config.run_name.removesuffix(f"-{config.hash[:SHORT]}")
    reporter = Reporter(
        directory, engine, f"{name}_{config.hash[:SHORT]}", steps=steps, done=saved.get("step", 0),
        report_to=report_to,
    )  # fmt: skip
    peak = loop.peak_flops(t)
    with reporter:
        state = loop.train(
            spread, batches, t, engine, steps=left, directory=directory.path, flops=cost,
            peak_flops=peak, on_step=reporter.step, after_step=sweetspots.after_step,
            should_stop=ranks.agreed_to_stop,
        )  # fmt: skip
    _finish(config, directory, state, monitor, tokenizer)


def training_config(config: SFTRunConfig, steps: int) -> PretrainConfig:
    """The settings of SFT as the engine has them, for `steps` optimizer steps."""
    t, engine = config.training, config.engine
    warms = t.lr_scheduler != "constant"
    constant = t.lr_scheduler.startswith("constant")
    return PretrainConfig(
        batch_size=t.effective_batch_size,
        max_tokens_per_gpu=engine.max_tokens_per_gpu,
        training_mode="step",
        max_steps=steps,
        max_lr=t.learning_rate,
        min_lr=0.0,
        lr_scheduler="constant" if constant else cast(Any, t.lr_scheduler),
        warmup_steps=math.ceil(steps * t.warmup_ratio) if warms else 0,
        weight_decay=t.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        grad_clip_value=t.max_grad_norm,
        seed=t.seed,
        router_aux_loss_coef=0.0,
        osft=engine.osft,
        osft_unfreeze_rank_ratio=engine.osft_unfreeze_rank_ratio,
    )


def engine_config(config: SFTRunConfig) -> EngineConfig:
    """How the engine carries out an SFT run."""
    shared = {f.name: getattr(config.engine, f.name) for f in fields(ComputeConfig)}
    return EngineConfig(**shared, save_every_steps=config.training.save_steps)


def _steps(config: SFTRunConfig) -> int:
    t = config.training
    return total_steps(config.train_size, t.effective_batch_size, t.num_train_epochs)


def _first() -> bool:
    """Whether this is the process that writes."""
    return ranks.rank() == 0


def _saved(directory: RunDirectory) -> dict[str, Any]:
    """The counts of the checkpoint that training goes on from; {} at the start."""
    newest = manifest.newest_whole(directory.path) if _first() else None
    found: dict[str, Any] | None = read_json(newest / checkpoint.STATE) if newest else None
    if found is None and _first():
        directory.rewind_metrics(-1)
    return ranks.from_first(found or {})


class _Sweetspots:
    """What is done between steps: measure, ask the rules, save."""

    def __init__(
        self, monitor: Monitor, perplexity: PoolPerplexity, steps: int, tokenizer: Any,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.monitor = monitor
        self.perplexity = perplexity
        self.steps = steps
        self.tokenizer = tokenizer
        self.dtype = dtype

    def after_step(self, state: TrainingState) -> bool:
        """Whether the last rule has fired; its time counts as training, as it does with TRL."""
        if not self.monitor.due(state.step, self.steps):
            return False
        started = time.perf_counter()
        self._measure(state)
        state.extra[RULES] = self.monitor.rules.state()
        state.seconds += time.perf_counter() - started
        return self.monitor.stops

    def _measure(self, state: TrainingState) -> None:
        def write(folder: Path) -> None:
            write_model(state.spread, folder, self.dtype, self.tokenizer)

        fired = self.monitor.observe(state.step, self.perplexity.measure().measurement)
        for rule in ranks.from_first(self.monitor.missing(fired)):
            if _first():
                self.monitor.save(rule, state.step, write)
            else:
                write(self.monitor.target(rule))


def _finish(
    config: SFTRunConfig, directory: RunDirectory, state: TrainingState, monitor: Monitor,
    tokenizer: Any,
) -> None:  # fmt: skip
    """Write the model and result.json; checkpoints stay until the run is done."""
    dtype = loading.dtype_of(config.model)
    save_model(state.spread, directory.path / MODEL, dtype, tokenizer)
    if not _first():
        return
    size = config.train_size
    seen = config.spending.seen(state.step)
    directory.write_result(
        global_step=state.step,
        train_size=size,
        data_points_seen=seen,
        data_used=min(seen, size),
        train_tokens=state.tokens,
        train_seconds=round(state.seconds, 2),
        device=ranks.device().type,
        processes=ranks.world_size(),
        perplexity=monitor.rules.history[-1],
        base_perplexity=monitor.rules.history[0],
        sweetspots=monitor.rules.outcome(),
    )
