"""A run of the engine from its config to a model directory: data, model, the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tuning.engine import data as run_data
from tuning.engine import flops, liger, loading, loop, losses, osft, parallel, ranks
from tuning.engine import model as models
from tuning.engine.batches import Batches
from tuning.engine.checkpoint import TrainingState
from tuning.engine.config import EngineConfig, PretrainConfig
from tuning.engine.export import save_model
from tuning.engine.parallel import OptimizerFactory, Spread
from tuning.engine.ranks import Layout
from tuning.engine.reporting import Reporter
from tuning.engine.run_config import PretrainRunConfig
from tuning.engine.samples import Samples
from tuning.engine.sources import kind_of
from tuning.engine.validation import Validation
from tuning.runs import manifest
from tuning.runs.errors import UserError
from tuning.runs.rundir import SHORT, RunDirectory
from tuning.weights import reading

MODEL = "model"


def pretrain(
    config: PretrainRunConfig,
    directory: RunDirectory,
    report_to: list[str] | None = None,
    *,
    samples: Samples | None = None,
    loss_function: losses.LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
) -> None:
    """Train, or continue, the run in `directory`; leaves model/ and result.json there.

    Under torchrun every process calls this; the first one writes. `samples`, `loss_function` and
    `optimizer` take the place of what the config names.
    """
    t, engine = config.training, config.engine
    layout = ranks.layout(engine.sep_size)
    shape = reading.read_config(config.source) if config.source else None
    if shape is not None:
        parallel.check(shape, engine.sep_size, None if t.max_tokens_per_gpu else config.seq_len)
        _check_length(config, shape)
    vocabulary = shape.vocab_size if shape is not None else config.shape.vocab_size
    data = run_data.prepare(config, vocabulary, samples)
    spread, cost = open_model(lambda: _read(config, data.tokenizer), lambda: _skeleton(config),
                              t, engine, layout)  # fmt: skip
    batches = batches_of(data.training, config.global_batch, t, layout, cost, config.seq_len)
    steps = steps_of(t, batches)
    reporter = _reporter(config, directory, steps, report_to or [])
    hooks = _Hooks(config, directory, reporter, data, batches, spread)
    peak = loop.peak_flops(t)
    with reporter:
        state = loop.train(
            spread, batches, t, engine, steps=steps, directory=directory.path,
            loss_function=loss_function or losses.named(t.loss, t.focal_alpha, t.focal_gamma),
            optimizer=optimizer, flops=cost, peak_flops=peak,
            on_step=reporter.step, after_step=hooks.after_step,
            should_stop=ranks.agreed_to_stop,
        )  # fmt: skip
        hooks.end(state)
    finish(state, directory, t, data.tokenizer, processes=layout.world, **hooks.result)


def _reporter(
    config: PretrainRunConfig, directory: RunDirectory, steps: int | None, report_to: list[str]
) -> Reporter:
    """Where a run tells how it goes on, from its newest checkpoint."""
    saved = manifest.newest_whole(directory.path)
    done = int(saved.name.rpartition("-")[2]) if saved else 0
    name = f"{config.model}_{config.hash[:SHORT]}"
    return Reporter(directory, config.engine, name, steps=steps, done=done, report_to=report_to)


def _check_length(config: PretrainRunConfig, shape: Any) -> None:
    """Raise UserError for blocks that are longer than the sequences a model was made for."""
    most = getattr(shape, "max_position_embeddings", None)
    path = config.data.data_path
    if most and path and kind_of(path) != "rows" and config.seq_len > most:
        raise UserError(
            f"blocks of {config.seq_len} tokens are longer than the {most} that "
            f"'{config.source}' was made for; give --block_size {most} or less"
        )


def open_model(
    read: Callable[[], Any],
    skeleton: Callable[[], Any],
    config: PretrainConfig,
    engine: EngineConfig,
    layout: Layout,
) -> tuple[Spread, flops.Flops]:
    """A model in place on all processes, changed as the settings ask, and what a token costs."""
    liger.check(engine.use_liger_kernels)
    sharded = engine.parallel == "fsdp2" and layout.world > 1
    if config.osft and config.train_dtype == "bfloat16" and sharded:
        # What OSFT trains is float32, and FSDP2 wants one dtype for all that trains in a block.
        raise UserError(
            "--osft with --train_dtype bfloat16 cannot be sharded with fsdp2; leave --train_dtype "
            "out (--precision bf16 computes in bfloat16), or give --parallel ddp"
        )

    def changed(model: Any) -> Any:
        if config.osft:
            patterns = config.osft_target_patterns or None
            osft.decompose(model, config.osft_unfreeze_rank_ratio, patterns)
        return model

    model: Any = loading.build_lazily(lambda: changed(read()), lambda: changed(skeleton()))
    cost = flops.count(model)
    if engine.use_liger_kernels:
        liger.apply(model)
    if engine.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if engine.use_compile:
        for block in parallel.layers_of(model):
            block.compile()
    half = loop.computes_in_half(config.precision, ranks.device())
    return parallel.spread(model, layout, parallel=engine.parallel, half=half), cost


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _read(config: PretrainRunConfig, tokenizer: Any) -> Any:
    dtype = _dtype(config.training.train_dtype)
    if config.source is not None:
        return reading.read(config.source, dtype)
    eos, pad = getattr(tokenizer, "eos_token_id", 0), getattr(tokenizer, "pad_token_id", None)
    made = models.build(
        config.shape, seed=config.training.seed, eos_token_id=eos or 0,
        pad_token_id=pad if pad is not None else eos or 0,
    )  # fmt: skip
    return torch.nn.Module.to(made, dtype)


def _skeleton(config: PretrainRunConfig) -> Any:
    dtype = _dtype(config.training.train_dtype)
    if config.source is not None:
        return models.skeleton(reading.read_config(config.source), dtype)
    shape = models.architecture(config.shape, eos_token_id=0, pad_token_id=0)
    return models.skeleton(shape, dtype)


def batches_of(
    samples: Samples, size: int, config: PretrainConfig, layout: Layout, cost: flops.Flops,
    longest: int | None,
) -> Batches:  # fmt: skip
    """The batches of a run: `size` samples a step, in rows of a fixed length or of a budget."""
    budget = config.max_tokens_per_gpu
    size = min(size, len(samples))
    if budget is not None and (most := int(samples.lengths.max())) > budget:
        raise UserError(
            f"the longest sample has {most} tokens; max_tokens_per_gpu is {budget}: raise it, or "
            "cut with --on_long truncate"
        )
    return Batches(
        samples=samples, global_batch=size, seed=config.seed, layout=layout,
        micro_batch=None if budget else min(config.batch_size, math.ceil(size / layout.dp_size)),
        max_tokens=budget, quadratic=cost.quadratic, longest=None if budget else longest,
    )  # fmt: skip


def steps_of(config: PretrainConfig, batches: Batches) -> int | None:
    """Optimizer steps of a run; None where it has no end."""
    if config.mode == "step":
        return config.max_steps
    if config.mode == "epoch":
        return config.max_epochs * batches.steps_per_epoch
    if config.mode == "infinite":
        return None
    assert config.max_tokens is not None
    return _steps_for(config.max_tokens, batches)


def _steps_for(tokens: int, batches: Batches) -> int:
    """Steps until so many tokens were seen."""
    epochs, left = divmod(tokens, int(batches.samples.lengths.sum()))
    step = epochs * batches.steps_per_epoch
    while left > 0:
        left -= int(batches.samples.lengths[batches.chosen(step)].sum())
        step += 1
    return step


class _Hooks:
    """What a run does between steps: validation, and models on the way."""

    def __init__(
        self, config: PretrainRunConfig, directory: RunDirectory, reporter: Reporter,
        data: run_data.Data, batches: Batches, spread: Spread,
    ) -> None:  # fmt: skip
        self.config = config
        self.directory = directory
        self.reporter = reporter
        self.tokenizer = data.tokenizer
        self.validation = (
            Validation(data.validation, batches, spread, config.training)
            if data.validation is not None
            else None
        )
        self.result: dict[str, Any] = {}

    def after_step(self, state: TrainingState) -> bool:
        """Nothing here ends a training."""
        engine = self.config.engine
        if state.step == 0:
            return False
        every = engine.validation_every_steps
        if self.validation and every and state.step % every == 0:
            self._validate(state)
        wanted = engine.min_samples_per_checkpoint
        if wanted and state.samples - state.extra.get("exported", 0) >= wanted:
            self._export(state, f"samples_{state.samples}")
            state.extra["exported"] = state.samples
        return False

    def end(self, state: TrainingState) -> None:
        """The validation loss of what is left at the end."""
        if self.validation and state.extra.get("validated") != state.step:
            self._validate(state)
        if "best_val_loss" in state.extra:
            self.result["best_val_loss"] = state.extra["best_val_loss"]

    def _validate(self, state: TrainingState) -> None:
        assert self.validation is not None
        loss = self.validation.measure()
        self.reporter.validation(state.step, loss)
        state.extra["validated"] = state.step
        self.result["val_loss"] = loss
        if loss < state.extra.get("best_val_loss", math.inf):
            state.extra["best_val_loss"] = loss
            if self.config.engine.save_best_val_loss:
                self._export(state, "best_val_loss")

    def _export(self, state: TrainingState, name: str) -> None:
        dtype = _dtype(self.config.training.save_dtype)
        save_model(state.spread, self.directory.path / "hf_format" / name, dtype, self.tokenizer)


def finish(
    state: TrainingState, directory: RunDirectory, config: PretrainConfig, tokenizer: Any,
    **more: Any,
) -> None:  # fmt: skip
    """Write the model and result.json."""
    save_model(state.spread, directory.path / MODEL, _dtype(config.save_dtype), tokenizer)
    if ranks.rank() != 0:
        return
    directory.write_result(
        global_step=state.step,
        train_tokens=state.tokens,
        loss_tokens=state.loss_tokens,
        samples=state.samples,
        train_seconds=round(state.seconds, 2),
        device=ranks.device().type,
        **more,
    )
