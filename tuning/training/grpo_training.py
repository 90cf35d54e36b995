"""Group relative policy optimization (Shao et al. 2024) with TRL, on the prompts of the preference
pool.

The reward is that of the task. Only prompts and what the task grades by are used; chosen and
rejected answers are not looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from tuning.engine import ranks
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory
from tuning.tasks.registry import task
from tuning.training import preference, sharded, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed, key_of
from tuning.training.pools import rewarded_rows
from tuning.training.shares import SharesSteps
from tuning.training.start import Start


class _Draws(LogitsProcessor):
    """Draws the next tokens of a batch of answers: of all ranks' answers the same numbers are drawn
    on every rank, and each uses those of its own.

    Sampling is the least of exponential variates divided by the probabilities; all other tokens are
    made impossible.
    """

    def __init__(self, seed: str, answers: int, args: Any) -> None:
        number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=7).digest())
        self.generator = torch.Generator(args.device).manual_seed(number)
        self.temperature = args.temperature
        self.answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of shape (answers, vocabulary)."""
        first, everyone = ranks.rank() * self.answers, ranks.world_size() * self.answers
        variates = torch.empty(everyone, scores.shape[1], device=scores.device)
        variates.exponential_(generator=self.generator)
        odds = torch.softmax(scores.float() / self.temperature, dim=-1)
        drawn = (odds / variates[first : first + self.answers]).argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -math.inf).scatter_(1, drawn, 0.0)


@contextlib.contextmanager
def _drawing(model: Any, draws: _Draws, *, synced: bool) -> Iterator[None]:
    """Have `generate` draw so within the block; `synced`: all ranks go on until each has its
    answers, as they hold a part of the weights each.
    """
    before = vars(model).get("generate")
    model.generate = partial(
        model.generate,
        logits_processor=LogitsProcessorList([draws]),
        synced_gpus=synced,
    )
    try:
        yield
    finally:
        if before is None:
            del model.generate
        else:
            model.generate = before


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends on the epoch alone, so that a resumed run has the
    same.
    """

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed((self.seed or 0) + epoch)


class _Trainer(SharesSteps, WholeCheckpoints, GRPOTrainer):
    """TRL's trainer with checkpoints that are whole and epochs that resume.

    What it samples does not depend on the number of processes. It samples in the precision that it
    trains in: TRL leaves autocast out there, and a bfloat16 model with modules that are trained
    whole, in float32, cannot be called without it.
    """

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        draws = _Draws(f"{self.args.seed}:{self.state.global_step}", len(prompt_ids), self.args)
        with self.accelerator.autocast(), _drawing(model, draws, synced=self.is_fsdp_enabled):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        sampler.__class__ = _EpochSampler
        return sampler


def train(config: PTRunConfig, directory: RunDirectory, start: Start, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    prepared = preference.prepare(config, directory, start)
    t, processes = config.training, ranks.world_size()
    if prepared.batch % processes:
        raise UserError(
            f"a step of grpo takes {prepared.batch} prompts here, which {processes} processes "
            "cannot share evenly, as it needs; train this run with one process."
        )
    arguments = trainers.arguments(config, directory, report_to, prepared.steps, prepared.batch)
    arguments["per_device_train_batch_size"] *= t.num_generations
    arguments["include_num_input_tokens_seen"] = "no"
    grade = task(config.task).grade
    rows = rewarded_rows(config, prepared.tokenizer, start.train_size)
    keys = [key_of([number]) for number in range(len(rows))]
    consumed = Consumed(keys, prepared.batch, whole_batches=True)

    def task_reward(completions: Any, row: list[int], **_: Any) -> list[float | None]:
        for number, answers in Counter(row).items():
            consumed.note([keys[number]] * (answers // t.num_generations))
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
    if trainer.ref_model is not None:  # TRL has read it from the base, whatever was merged into it
        sharded.copy_weights(trainer.model, trainer.ref_model)
    preference.run(trainer, prepared, config, directory, start, consumed)
