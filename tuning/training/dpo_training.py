"""Direct preference optimization (Rafailov et al. 2023) with TRL."""

from __future__ import annotations

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tuning.runs.rundir import RunDirectory
from tuning.training import preference, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config_training import PTRunConfig


class _Trainer(WholeCheckpoints, DPOTrainer):
    """TRL's trainer with checkpoints that are whole."""


def train(
    config: PTRunConfig, directory: RunDirectory, start: preference.Start, report_to: list[str]
) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    prepared = preference.prepare(config, directory, start)
    weight = config.training.sft_loss_weight
    columns = ("prompt", "chosen", "rejected")
    trainer = _Trainer(
        model=prepared.model,
        args=DPOConfig(
            **trainers.arguments(config, directory, report_to, prepared.steps, prepared.batch),
            beta=config.training.beta,
            max_length=config.model.max_seq_length,
            loss_type=["sigmoid", "sft"] if weight else ["sigmoid"],
            loss_weights=[1.0, weight] if weight else None,
        ),
        train_dataset=Dataset.from_list([{c: row[c] for c in columns} for row in prepared.rows]),
        processing_class=prepared.tokenizer,
        peft_config=prepared.peft_config,
        callbacks=[prepared.callback],
    )
    trainer.directory = directory
    trainers.run(trainer, prepared.callback, prepared.resume)
    preference.finish(trainer, prepared, config, directory, start)
