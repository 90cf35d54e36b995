"""Group relative policy optimization (Shao et al. 2024) with TRL, on the prompts of the preference
pool.

The reward is that of the task. Only prompts and what the task grades by are used; chosen and
rejected answers are not looked at.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from tuning.runs.rundir import RunDirectory
from tuning.tasks.registry import task
from tuning.training import preference, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed, key_of
from tuning.training.pools import rewarded_rows
from tuning.training.start import Start


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends on the epoch alone, so that a resumed run has the
    same.
    """

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed((self.seed or 0) + epoch)


class _Trainer(WholeCheckpoints, GRPOTrainer):
    """TRL's trainer with checkpoints that are whole and epochs that resume.

    It samples in the precision that it trains in: TRL leaves autocast out there, and a bfloat16
    model with modules that are trained whole, in float32, cannot be called without it.
    """

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.accelerator.autocast():
            return super()._generate_single_turn(*args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        sampler.__class__ = _EpochSampler
        return sampler


def train(config: PTRunConfig, directory: RunDirectory, start: Start, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    prepared = preference.prepare(config, directory, start)
    t = config.training
    arguments = trainers.arguments(config, directory, report_to, prepared.steps, prepared.batch)
    arguments["per_device_train_batch_size"] *= t.num_generations
    arguments["include_num_input_tokens_seen"] = "no"
    grade = task(config.task).grade
    rows = rewarded_rows(config, prepared.tokenizer, start.train_size)
    keys = [key_of([number]) for number in range(len(rows))]
    consumed = Consumed(keys, prepared.batch, whole_batches=True)

    def task_reward(completions: Any, row: list[int], **_: Any) -> list[float | None]:
        for number, answers in Counter(row).items():
            consumed.add([keys[number]] * (answers // t.num_generations))
        return [
            grade(completion[0]["content"], rows[number]).reward
            for completion, number in zip(completions, row, strict=True)
        ]

    trainer = _Trainer(
        model=prepared.model,
        reward_funcs=[task_reward],
        args=GRPOConfig(
            **arguments,
            beta=t.grpo_beta,
            num_generations=t.num_generations,
            max_completion_length=t.max_completion_length,
            temperature=t.grpo_temperature,
            disable_dropout=True,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "row": number} for number, row in enumerate(rows)]
        ),
        processing_class=prepared.tokenizer,
        peft_config=prepared.peft_config,
    )
    if (
        trainer.ref_model is not None
    ):  # which TRL has read from the base, whatever was merged into it
        trainer.ref_model.load_state_dict(trainer.model.state_dict())
    preference.run(trainer, prepared, config, directory, start, consumed)
