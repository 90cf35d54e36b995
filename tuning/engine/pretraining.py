"""A pre-training run from its config to a model directory: data, model, the loop."""

from __future__ import annotations

import math
from typing import Any

import torch

from tuning.engine import data as run_data
from tuning.engine import loop, losses, parallel, ranks
from tuning.engine import model as models
from tuning.engine.batches import Batches
from tuning.engine.checkpoint import TrainingState
from tuning.engine.config import OptimizationConfig
from tuning.engine.export import save_model
from tuning.engine.parallel import OptimizerFactory, Spread
from tuning.engine.reporting import Reporter
from tuning.engine.run_config import PretrainRunConfig
from tuning.engine.samples import Samples
from tuning.engine.setup import batches_of, open_model
from tuning.engine.sources import kind_of
from tuning.engine.validation import Validation
from tuning.runs import manifest
from tuning.runs.errors import UserError
from tuning.runs.rundir import SHORT, RunDirectory
from tuning.weights import reading
from tuning.weights.base import MODEL


def pretrain(
    config: PretrainRunConfig,
    directory: RunDirectory,
    report_to: list[str] | None = None,
    *,
    samples: Samples | None = None,
    loss_function: losses.LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
) -> None:
    """Train, or resume, the run in `directory`; writes model/ and result.json there.

    Under torchrun every process calls this; rank 0 writes. `samples`, `loss_function` and
    `optimizer` replace those that the config names.
    """
    t, compute, output = config.training, config.compute, config.output
    loss = loss_function or losses.loss_function(t)
    layout = ranks.layout(compute.sep_size)
    shape = reading.read_config(config.source) if config.source else None
    if shape is not None:
        parallel.check(shape, compute.sep_size, None if t.packed else config.seq_len)
        _check_length(config, shape)
    vocabulary = shape.vocab_size if shape is not None else config.shape.vocab_size
    data = run_data.prepare(config, vocabulary, samples)
    spread, cost = open_model(
        lambda dtype: _read(config, data.tokenizer, dtype),
        lambda dtype: _skeleton(config, dtype),
        layout,
        compute,
        osft_config=t,
        precision=t.precision,
        dtype=_dtype(t.train_dtype),
    )
    batches = batches_of(
        data.training,
        config.global_batch,
        layout,
        compute,
        cost,
        seed=t.seed,
        longest=config.seq_len,
    )
    steps = steps_of(t, batches)
    reporter = _reporter(config, directory, steps, report_to or [])
    hooks = _Hooks(config, directory, reporter, data, batches, spread)
    peak = loop.peak_flops(spread, t.precision)
    with reporter:
        state = loop.train(
            spread,
            batches,
            t,
            steps=steps,
            directory=directory.path,
            save_every=None if output.debug else output.save_every_steps,
            keep=output.keep_checkpoints,
            loss_function=loss,
            optimizer=optimizer,
            flops=cost,
            peak_flops=peak,
            on_step=reporter.step,
            after_step=hooks.after_step,
            should_stop=ranks.agreed_to_stop,
        )
        hooks.end(state)
    dtype = _dtype(t.save_dtype)
    finish(state, directory, dtype, data.tokenizer, processes=layout.world, **hooks.result)


def _reporter(
    config: PretrainRunConfig, directory: RunDirectory, steps: int | None, report_to: list[str]
) -> Reporter:
    """The reporter of a run, from its newest checkpoint on."""
    saved = manifest.newest_whole(directory.path)
    done = int(saved.name.rpartition("-")[2]) if saved else 0
    name = f"{config.model}_{config.hash[:SHORT]}"
    return Reporter(directory, config.output, name, steps=steps, done=done, report_to=report_to)


def _check_length(config: PretrainRunConfig, shape: Any) -> None:
    """Raise UserError for blocks longer than the longest sequence of the model."""
    most = getattr(shape, "max_position_embeddings", None)
    path = config.data.data_path
    if most and path and kind_of(path) != "rows" and config.seq_len > most:
        raise UserError(
            f"blocks of {config.seq_len} tokens are longer than the {most} that "
            f"'{config.source}' was made for; give --block_size {most} or less"
        )


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _read(config: PretrainRunConfig, tokenizer: Any, dtype: torch.dtype) -> Any:
    if config.source is not None:
        return reading.read(config.source, dtype)
    eos, pad = getattr(tokenizer, "eos_token_id", 0), getattr(tokenizer, "pad_token_id", None)
    made = models.build(
        config.shape,
        seed=config.training.seed,
        eos_token_id=eos or 0,
        pad_token_id=pad if pad is not None else eos or 0,
    )
    return torch.nn.Module.to(made, dtype)


def _skeleton(config: PretrainRunConfig, dtype: torch.dtype) -> Any:
    if config.source is not None:
        return models.skeleton(reading.read_config(config.source), dtype)
    shape = models.architecture(config.shape, eos_token_id=0, pad_token_id=0)
    return models.skeleton(shape, dtype)


def steps_of(config: OptimizationConfig, batches: Batches) -> int | None:
    """Optimizer steps of a run; None for one without end."""
    if config.mode == "step":
        return config.max_steps
    if config.mode == "epoch":
        return config.max_epochs * batches.steps_per_epoch
    if config.mode == "infinite":
        return None
    assert config.max_tokens is not None
    return _steps_for(config.max_tokens, batches)


def _steps_for(tokens: int, batches: Batches) -> int:
    """Steps until `tokens` tokens were seen."""
    epochs, left = divmod(tokens, int(batches.samples.lengths.sum()))
    step = epochs * batches.steps_per_epoch
    while left > 0:
        left -= int(batches.samples.lengths[batches.chosen(step)].sum())
        step += 1
    return step


class _Hooks:
    """Called between steps: validation, and models that are written on the way."""

    def __init__(
        self,
        config: PretrainRunConfig,
        directory: RunDirectory,
        reporter: Reporter,
        data: run_data.Data,
        batches: Batches,
        spread: Spread,
    ) -> None:
        self.config = config
        self.directory = directory
        self.reporter = reporter
        self.tokenizer = data.tokenizer
        self.validation = (
            Validation(data.validation, batches, spread, config.training.precision)
            if data.validation is not None
            else None
        )
        self.result: dict[str, Any] = {}

    def after_step(self, state: TrainingState) -> bool:
        """Validate and export if it is time; never ends the training."""
        output = self.config.output
        if state.step == 0:
            return False
        every = output.validation_every_steps
        if self.validation and every and state.step % every == 0:
            self._validate(state)
        wanted = output.min_samples_per_checkpoint
        if wanted and state.samples - state.extra.get("exported", 0) >= wanted:
            self._export(state, f"samples_{state.samples}")
            state.extra["exported"] = state.samples
        return False

    def end(self, state: TrainingState) -> None:
        """Validate the final model, unless the last step did."""
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
            if self.config.output.save_best_val_loss:
                self._export(state, "best_val_loss")

    def _export(self, state: TrainingState, name: str) -> None:
        dtype = _dtype(self.config.training.save_dtype)
        save_model(state.spread, self.directory.path / "hf_format" / name, dtype, self.tokenizer)


def finish(
    state: TrainingState,
    directory: RunDirectory,
    dtype: torch.dtype,
    tokenizer: Any,
    **more: Any,
) -> None:
    """Write the model and result.json."""
    save_model(state.spread, directory.path / MODEL, dtype, tokenizer)
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
