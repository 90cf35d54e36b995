"""Supervised fine-tuning with TRL: response-only loss, a LoRA adapter or all weights, sweetspots on
the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from trl import SFTConfig, SFTTrainer

from tuning.data.encoding import IGNORED, Encoded
from tuning.engine.losses import loss_function
from tuning.inference.beside import BESIDE, Beside
from tuning.inference.hf_engine import HFGenerator
from tuning.inference.probe import PassAtKProbe
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.monitor import Monitors
from tuning.training import trainers
from tuning.training.backend import open_policy
from tuning.training.checkpoints import Resume, RunCallback, WholeCheckpoints, resume_point
from tuning.training.config_training import SFTRunConfig
from tuning.training.consumed import Consumed, CountsRows, Key, ids_of, key_of
from tuning.training.pools import problems, sft_pools
from tuning.training.shares import SharesSteps
from tuning.training.stopping_callbacks import (
    PassAtKStoppingCallback,
    PerplexityStoppingCallback,
    SharedPerplexity,
)
from tuning.weights import loading
from tuning.weights.artifact import Artifact, artifact_of


class _Trainer(SharesSteps, CountsRows, WholeCheckpoints, SFTTrainer):
    """TRL's trainer with checkpoints that are whole, which counts what it is trained on."""

    def rows_in(self, inputs: Any) -> list[Key]:
        learnt = (inputs["labels"][:, 1:] != IGNORED).any(dim=1).tolist()
        return [key_of(ids) for ids, counts in zip(ids_of(inputs), learnt, strict=True) if counts]


def train(config: SFTRunConfig, directory: RunDirectory, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    size, batch = config.train_size, config.training.effective_batch_size
    loss = _loss(config)
    base = artifact_of(config.model)
    tokenizer = loading.open_tokenizer(base)
    rows, pool = sft_pools(config, tokenizer)

    resume = resume_point(directory)
    monitors = config.monitors(directory)
    if resume.checkpoint:
        monitors.load(resume.state)
    consumed = Consumed((key_of(row.ids) for row in rows), batch)
    perplexity = PerplexityStoppingCallback(monitors, SharedPerplexity(pool))
    with _pass_at_k(config, monitors, base, tokenizer, directory) as pass_at_k:
        trainer = _Trainer(
            model=_opened(config, base),
            args=SFTConfig(
                **trainers.arguments(config, directory, report_to, config.steps, batch),
                max_length=None,
                loss_type="nll",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([_labelled(row) for row in rows]),
            processing_class=tokenizer,
            compute_loss_func=loss,
            callbacks=[perplexity, *pass_at_k],
        )
        callback = RunCallback(directory, resume, consumed, stateful=monitors)
        trainer.add_callback(callback)
        trainer.directory, trainer.consumed = directory, consumed
        for stopping in pass_at_k:
            _catch_up(trainer, stopping, resume)
        trainers.run(trainer, callback, resume, finished=monitors.stops)
    trainers.finish(trainer, tokenizer, config, directory, callback, size, **monitors.result)


@contextlib.contextmanager
def _pass_at_k(
    config: SFTRunConfig,
    monitors: Monitors,
    base: Artifact,
    tokenizer: Any,
    directory: RunDirectory,
) -> Iterator[list[PassAtKStoppingCallback]]:
    """The callback that measures pass@k, if the run does. The model in training answers itself; or
    an engine beside it does, which is ended with the block.
    """
    if monitors.pass_at_k is None:
        yield []
        return
    probe = PassAtKProbe(problems(config), config.task, config.pass_at_k, config.hash)
    if config.pass_at_k.pass_at_k_backend == "hf":
        yield [
            PassAtKStoppingCallback(
                monitors, probe, lambda model: nullcontext(HFGenerator(model, tokenizer))
            )
        ]
        return
    keep = config.pass_at_k.use_persistent_vllm
    beside = Beside(base, probe.sampling, directory.path / BESIDE, keep=keep)
    with closing(beside):
        yield [
            PassAtKStoppingCallback(
                monitors,
                probe,
                lambda model: beside.generator(lambda folder: loading.write(model, folder)),
            )
        ]


def _catch_up(trainer: _Trainer, stopping: PassAtKStoppingCallback, resume: Resume) -> None:
    """Make the measurement that was interrupted after the step of the checkpoint to resume from."""
    if stopping.monitor.owed:
        trainers.in_float32(trainer.model)
        trainer._load_from_checkpoint(str(resume.checkpoint))
        stopping.observe(resume.step, trainer.args.max_steps, trainer.model)


def _loss(config: SFTRunConfig) -> Callable[..., torch.Tensor] | None:
    """The loss as the Trainer calls it: a sum over the tokens of a micro-batch, divided by the
    number of tokens with a loss in the whole step. None for cross-entropy, which TRL has itself.
    """
    if config.loss.loss == "cross_entropy":
        return None
    function = loss_function(config.loss)

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        targets = labels[:, 1:]
        counted = targets != IGNORED
        losses = function(outputs.logits[:, :-1][counted].float(), targets[counted])
        total = counted.sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / torch.as_tensor(total, device=losses.device).clamp(min=1)

    return compute


def _opened(config: SFTRunConfig, base: Artifact) -> Any:
    """The base model, with a new adapter that is initialised from the run's seed, or as it is where
    all weights are trained.
    """
    trainers.seeded(config)
    model, adapter = open_policy(config, base)
    return model if adapter is None else get_peft_model(model, adapter)


def _labelled(row: Encoded) -> dict[str, list[int]]:
    """Token ids with the loss on the response only."""
    return {
        "input_ids": row.ids,
        "labels": row.labels,
    }
