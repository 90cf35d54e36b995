"""The engine's Python API: settings as `TrainingArgs`, training by `train()`.

It is the training of `run_pretrain.py --output_dir`, with the same settings, directory, lock and
checkpoints; either resumes what the other began. Under torchrun every process calls `train()`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import InitVar, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.engine.config import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizationConfig,
    OutputConfig,
)
from tuning.engine.together import on_all_ranks
from tuning.flags import coerce, settable
from tuning.runs import interrupt
from tuning.runs.errors import UserError
from tuning.runs.rundir import Identity, claim
from tuning.runs.training import training_in
from tuning.settings import identity_hash

if TYPE_CHECKING:
    from tuning.engine.losses import LossFunction
    from tuning.engine.parallel import OptimizerFactory
    from tuning.engine.run_config import PretrainRunConfig
    from tuning.engine.samples import Samples

PARTS: tuple[type, ...] = (DataConfig, OptimizationConfig, ComputeConfig, OutputConfig)
SAMPLES_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The data are documents, which are cut into blocks."""

    block_size: int
    """Tokens of a block."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UserError(f"block_size is {self.block_size}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingArgs(DataConfig, OptimizationConfig, ComputeConfig, OutputConfig):
    """Model, data, training and output: the settings of run_pretrain.py by the same names. Raises
    UserError for a setting that is not allowed.
    """

    output_dir: str | os.PathLike[str]
    """The run's own directory: model/, metrics.jsonl, result.json and checkpoints."""
    model_name_or_path: str | os.PathLike[str] | None = None
    """Weights to start from: a folder, a hub id, or a model of collections.yaml."""
    model: ModelConfig | None = None
    """The shape of fresh weights, instead of model_name_or_path."""
    pretraining_config: PretrainingConfig | None = None
    """Cut documents into blocks; None for fine-tuning rows."""
    learning_rate: InitVar[float | None] = None
    """Another name of max_lr, to which it is assigned."""

    def __post_init__(self, learning_rate: float | None) -> None:
        if learning_rate is not None:
            object.__setattr__(self, "max_lr", learning_rate)
        for part in PARTS:
            for entry in settable(part):
                object.__setattr__(self, entry.name, _typed(self, part, entry.name))
            part.__post_init__(self)  # type: ignore[attr-defined]
        if (self.model_name_or_path is None) == (self.model is None):
            raise UserError(
                "give model_name_or_path (existing weights to start from) or model (a "
                "ModelConfig, for newly initialized weights)"
            )
        blocks = self.pretraining_config
        if blocks is not None and self.seq_len not in (None, blocks.block_size):
            raise UserError(
                f"seq_len is {self.seq_len} and block_size {blocks.block_size}; leave seq_len out"
            )

    @property
    def directory(self) -> Path:
        """output_dir as an absolute path."""
        return Path(self.output_dir).expanduser().resolve()

    def run_config(self, samples: Samples | None = None) -> PretrainRunConfig:
        """The run that these arguments describe; `samples` replace its data."""
        from tuning.engine.run_config import experiment_config

        values = {f.name: getattr(self, f.name) for part in PARTS for f in settable(part)}
        values["log_dir"] = self.log_dir or str(self.directory / "logs")
        if self.model is not None:
            values |= {f.name: getattr(self.model, f.name) for f in fields(ModelConfig)}
        else:
            values["model_name_or_path"] = str(self.model_name_or_path)
        if self.pretraining_config is not None:
            values["seq_len"] = self.pretraining_config.block_size
        self._check_file()
        fingerprint = None if samples is None else _fingerprint(samples)
        return experiment_config("gpt", values, samples=fingerprint)

    def _check_file(self) -> None:
        """Raise UserError for rows that are to be cut into blocks, or if log_dir, or TUNING_HOME,
        where tokens are cached, cannot be written."""
        if self.log_dir:
            site.require_folder("log_dir", site.expanded(self.log_dir))
        if self.data_path is None:
            return
        from tuning.engine.sources import kind_of

        kind = kind_of(self.data_path)
        if kind != "rows":
            site.require_writable_home()
        elif self.pretraining_config is not None:
            raise UserError(
                f"'{self.data_path}' holds rows with labels; they are not cut into blocks: leave "
                "pretraining_config out, or give documents (input_ids without labels)"
            )


def _typed(args: TrainingArgs, part: type, name: str) -> Any:
    """A setting in the type of its field: paths as text, lists as tuples, numbers as numbers."""
    value = getattr(args, name)
    if value is None and getattr(part, name) is not None:
        raise UserError(f"{name} is None; give it a value or leave it out")
    return coerce(part, name, value, "")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The results of a training."""

    directory: Path
    """The run's directory."""
    result: dict[str, Any]
    """result.json: steps, samples, tokens, seconds, and the validation loss if one is measured."""

    @property
    def model(self) -> Path:
        """The final weights, as transformers loads them."""
        return self.directory / "model"


def train(
    args: TrainingArgs,
    *,
    samples: Samples | None = None,
    loss_function: LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
) -> TrainingResult:
    """Train, or resume, the run that `args` describe in args.output_dir; returns at once if it is
    done.

    Signals to stop (SIGTERM, SIGINT, SIGUSR1) take effect before the next step.

    Args:
        args: Settings.
        samples: Data of your own, see samples.py; validation_split holds some of them out.
        loss_function: Instead of args.loss, see losses.py.
        optimizer: From parameter groups to an optimizer, instead of AdamW; the learning rate of
            its groups is set before each step.

    Raises:
        UserError: Settings or data are not allowed, or output_dir holds something else.
        Interrupted: Stopped by a signal; a checkpoint is saved, and the same call resumes.
    """
    config = args.run_config(samples)
    if loss_function is None:
        config.training.own_function()
    brought = {"loss_function": loss_function, "optimizer": optimizer}
    program = {name: _name(what) for name, what in brought.items() if what is not None}
    identity = _identity(config.identity(), args.directory.name, program)

    claimed = claim(args.directory.parent, identity, exact=True, check=interrupt.check)
    with interrupt.heeded(), on_all_ranks(training_in(claimed)) as training:
        if not training.done:
            from tuning.engine.pretraining import pretrain

            pretrain(
                config,
                training.directory,
                samples=samples,
                loss_function=loss_function,
                optimizer=optimizer,
            )
    directory = training.directory
    return TrainingResult(directory=directory.path, result=directory.result)


def _identity(found: Identity, run_name: str, program: dict[str, str]) -> Identity:
    """The identity of a run with the names of functions that were passed in from Python."""
    if not program:
        return replace(found, run_name=run_name)
    hashed = found.hashed | {"program": program}
    new_hash = identity_hash(found.kind, hashed)
    return replace(found, run_name=run_name, hash=new_hash, hashed=hashed)


def _fingerprint(samples: Samples) -> str:
    """A hash of samples: of the lengths of all, and of the contents of some."""
    import numpy as np

    if not len(samples):
        raise UserError("samples is empty; there is nothing to train on")
    total = hashlib.sha256()
    for counts in (samples.lengths, samples.loss_tokens, samples.squares):
        total.update(np.asarray(counts, dtype=np.int64).tobytes())
    number = min(len(samples), SAMPLES_LOOKED_AT)
    for index in np.linspace(0, len(samples) - 1, number).astype(int):
        for part in samples[int(index)]:
            total.update(np.asarray(part, dtype=np.int64).tobytes())
    return total.hexdigest()


def _name(brought: Callable[..., Any]) -> str:
    """The name of a function or of an object's class, with the arguments that a partial fixes."""
    if isinstance(brought, functools.partial):
        fixed = [*map(str, brought.args), *(f"{k}={v}" for k, v in brought.keywords.items())]
        return f"{_name(brought.func)}({', '.join(fixed)})"
    owner = brought if hasattr(brought, "__qualname__") else type(brought)
    return f"{owner.__module__}.{owner.__qualname__}"
