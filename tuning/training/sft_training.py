"""Supervised fine-tuning with TRL: response-only loss, a LoRA adapter, sweetspots on the way."""

from __future__ import annotations

from datasets import Dataset
from peft import PeftModel, get_peft_model
from trl import SFTConfig, SFTTrainer

from tuning.evaluation.perplexity import Encoded
from tuning.runs.rundir import RunDirectory
from tuning.training import models, trainers
from tuning.training.budget import data_points_seen, total_steps
from tuning.training.checkpoints import RunCallback, WholeCheckpoints, resume_point
from tuning.training.config_training import SFTRunConfig
from tuning.training.encoding import sft_pools
from tuning.training.perplexity_callback import PerplexityStoppingCallback
from tuning.training.perplexity_watch import rules_of


class _Trainer(WholeCheckpoints, SFTTrainer):
    """TRL's trainer with checkpoints that are whole."""


def train(config: SFTRunConfig, directory: RunDirectory, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    size, batch = config.dataset.train_size or 0, config.training.effective_batch_size
    steps = total_steps(size, batch, config.training.num_train_epochs)
    tokenizer = models.load_tokenizer(config.model)
    rows, pool = sft_pools(config, tokenizer)

    resume = resume_point(directory)
    rules = rules_of(config)
    if resume.checkpoint:
        rules.load(resume.state)
    callback = RunCallback(directory, resume, stateful=rules)
    perplexity = PerplexityStoppingCallback(config, rules, pool, directory)
    trainer = _Trainer(
        model=_adapted(config),
        args=SFTConfig(
            **trainers.arguments(config, directory, report_to, steps, batch),
            max_length=None,
            loss_type="nll",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list([_labelled(row) for row in rows]),
        processing_class=tokenizer,
        callbacks=[perplexity, callback],
    )
    trainer.directory = directory
    trainers.run(trainer, callback, resume, finished=perplexity.watch.stops)
    trainers.finish(
        trainer, tokenizer, config, directory, callback, size,
        data_points_seen(trainer.state.global_step, size, batch),
        perplexity=rules.history[-1],
        base_perplexity=rules.history[0],
        sweetspots=rules.outcome(),
    )  # fmt: skip


def _adapted(config: SFTRunConfig) -> PeftModel:
    """The base model with a new adapter, initialised from the run's seed."""
    trainers.seeded(config)
    base = models.load_base(config.model)
    models.require_modules(base, config.lora)
    adapted = get_peft_model(base, models.peft_config(config.lora))
    assert isinstance(adapted, PeftModel)
    return adapted


def _labelled(row: Encoded) -> dict[str, list[int]]:
    """Token ids with the loss on the response only."""
    return {
        "input_ids": row.prompt + row.response,
        "labels": [-100] * len(row.prompt) + row.response,
    }
