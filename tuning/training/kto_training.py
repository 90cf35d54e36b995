"""Kahneman-Tversky optimization (Ethayarajh et al. 2024) with TRL, on unpaired rows made from the
pairs.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from tuning.runs.rundir import RunDirectory
from tuning.training import preference, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config import largest_divisor
from tuning.training.config_training import PTRunConfig
from tuning.training.start import Start


class _Trainer(WholeCheckpoints, KTOTrainer):
    """TRL's trainer with checkpoints that are whole."""


def unpaired(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Two rows a pair, {prompt, completion, label}, in a seeded order.

    The trainer reads rows in order and estimates its KL term among neighbours, so they are shuffled
    here.
    """
    made = [
        {"prompt": row["prompt"], "completion": row[column], "label": column == "chosen"}
        for row in rows
        for column in ("chosen", "rejected")
    ]
    random.Random(seed).shuffle(made)
    return made


def train(config: PTRunConfig, directory: RunDirectory, start: Start, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    prepared = preference.prepare(config, directory, start)
    micro = 2 * largest_divisor(prepared.batch, config.training.kl_batch_size // 2)
    arguments = trainers.arguments(config, directory, report_to, prepared.steps, prepared.batch)
    arguments |= {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": 2 * prepared.batch // micro,
    }
    trainer = _Trainer(
        model=prepared.model,
        args=KTOConfig(
            **arguments, beta=config.training.beta, max_length=config.model.max_seq_length
        ),
        train_dataset=Dataset.from_list(unpaired(prepared.rows, config.training.seed)),
        processing_class=prepared.tokenizer,
        peft_config=prepared.peft_config,
        callbacks=[prepared.callback],
    )
    trainer.directory = directory
    trainers.run(trainer, prepared.callback, prepared.resume)
    preference.finish(trainer, prepared, config, directory, start)
