"""Supervised fine-tuning with TRL: response-only loss, a LoRA adapter, sweetspots on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from trl import SFTConfig, SFTTrainer

from tuning.data.encoding import IGNORED, Encoded
from tuning.engine.losses import loss_function
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.monitor import Monitor
from tuning.training import trainers
from tuning.training.checkpoints import RunCallback, WholeCheckpoints, resume_point
from tuning.training.config_training import SFTRunConfig
from tuning.training.consumed import Consumed, CountsRows, Key, ids_of, key_of
from tuning.training.perplexity_callback import PerplexityStoppingCallback, SharedPerplexity
from tuning.training.pools import sft_pools
from tuning.training.shares import SharesSteps
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
    monitor = Monitor(config.perplexity, config.spending, directory, config.hash)
    rules = monitor.rules
    if resume.checkpoint:
        rules.load(resume.state)
    consumed = Consumed((key_of(row.ids) for row in rows), batch)
    callback = RunCallback(directory, resume, consumed, stateful=rules)
    perplexity = PerplexityStoppingCallback(monitor, SharedPerplexity(pool))
    trainer = _Trainer(
        model=_adapted(config, base),
        args=SFTConfig(
            **trainers.arguments(config, directory, report_to, config.steps, batch),
            max_length=None,
            loss_type="nll",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list([_labelled(row) for row in rows]),
        processing_class=tokenizer,
        compute_loss_func=loss,
        callbacks=[perplexity, callback],
    )
    trainer.directory, trainer.consumed = directory, consumed
    trainers.run(trainer, callback, resume, finished=monitor.stops)
    trainers.finish(
        trainer,
        tokenizer,
        config,
        directory,
        callback,
        size,
        perplexity=rules.history[-1],
        base_perplexity=rules.history[0],
        sweetspots=rules.outcome(),
    )


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


def _adapted(config: SFTRunConfig, base: Artifact) -> PeftModel:
    """The base model with a new adapter, initialised from the run's seed."""
    trainers.seeded(config)
    model: Any = loading.open_model(base)
    loading.require_modules(model, config.lora)
    adapted = get_peft_model(model, loading.peft_config(config.lora))
    assert isinstance(adapted, PeftModel)
    return adapted


def _labelled(row: Encoded) -> dict[str, list[int]]:
    """Token ids with the loss on the response only."""
    return {
        "input_ids": row.ids,
        "labels": row.labels,
    }
