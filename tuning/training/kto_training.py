"""Kahneman-Tversky optimization (Ethayarajh et al. 2024) with TRL, on unpaired rows: those of the
pool, or two made from each pair.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from tuning.data import train_dataset
from tuning.runs.ranks import world_size
from tuning.runs.rundir import RunDirectory
from tuning.training import preference, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed, CountsRows, Key, ids_of, key_of
from tuning.training.pools import preference_pairs, unpaired_answers
from tuning.training.shares import SharesSteps
from tuning.training.start import Start

Row = dict[str, Any]
"""The ids of a prompt and a completion, and whether it is a good one."""


class _Trainer(SharesSteps, CountsRows, WholeCheckpoints, KTOTrainer):
    """TRL's trainer on rows that are encoded already, with checkpoints that are whole.

    TRL takes the mean over ranks of their KL terms and of their losses; each is weighed by the
    rank's share of the micro-batch, so that both are those of all its rows.
    """

    def _compute_kl_logps(self, *args: Any, **kwargs: Any) -> Any:
        return super()._compute_kl_logps(*args, **kwargs) * self.share

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * self.share

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def rows_in(self, inputs: Any) -> list[Key]:
        learnt = inputs["completion_mask"][:, 1:].any(dim=1).tolist()
        rows = zip(ids_of(inputs), inputs["label"].tolist(), learnt, strict=True)
        return [key_of(ids, note=label) for ids, label, counts in rows if counts]


def train(config: PTRunConfig, directory: RunDirectory, start: Start, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    prepared = preference.prepare(config, directory, start)
    rows, rows_per_example = _rows(config, prepared.tokenizer, start.train_size)
    micro = micro_batch(prepared.batch, rows_per_example, config.training.kl_batch_size)
    arguments = trainers.arguments(config, directory, report_to, prepared.steps, prepared.batch)
    arguments |= {
        "per_device_train_batch_size": max(2, math.ceil(micro / world_size())),
        "gradient_accumulation_steps": rows_per_example * prepared.batch // micro,
    }
    rows = with_neighbours(rows, config.training.seed, micro)
    trainer = _Trainer(
        model=prepared.model,
        ref_model=prepared.reference(config),
        args=KTOConfig(**arguments, beta=config.training.beta, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=prepared.tokenizer,
        peft_config=prepared.peft_config,
    )
    keys = [key_of(row["prompt_ids"] + row["completion_ids"], note=row["label"]) for row in rows]
    consumed = Consumed(keys, prepared.batch, rows_per_example=rows_per_example)
    preference.run(trainer, prepared, config, directory, start, consumed)


def _rows(config: PTRunConfig, tokenizer: Any, size: int) -> tuple[list[Row], int]:
    """The rows of the first `size` examples, and how many one example is: a pair is two."""
    if train_dataset.is_unpaired(config.dataset.entry):
        answers = unpaired_answers(config, tokenizer, size)
        return [_row(answer.prompt, answer.response, good) for answer, good in answers], 1
    pairs = preference_pairs(config, tokenizer, size)
    return [
        _row(pair.prompt, answer, chosen)
        for pair in pairs
        for answer, chosen in ((pair.chosen, True), (pair.rejected, False))
    ], 2


def _row(prompt: list[int], completion: list[int], label: bool) -> Row:
    return {"prompt_ids": prompt, "completion_ids": completion, "label": label}


def micro_batch(batch: int, rows_per_example: int, most: int) -> int:
    """The rows of whole examples that the KL term is estimated from together: as many as divide the
    step and are not above `most`, but two at least, for which an odd step may need more.
    """
    sizes = [rows_per_example * n for n in range(1, batch + 1) if batch % n == 0]
    possible = [size for size in sizes if size >= 2]
    return max([size for size in possible if size <= most] or possible[:1])


def with_neighbours(rows: Sequence[Row], seed: int, micro_batch: int) -> list[Row]:
    """Rows in a seeded order, each with the completion of its neighbour.

    The trainer reads rows in order and estimates its KL term from prompts with the completions of
    their neighbours in the micro-batch, so they are shuffled here. A row that is alone in the last
    micro-batch takes that of the row before.
    """
    made = list(rows)
    random.Random(seed).shuffle(made)
    for first in range(0, len(made), micro_batch):
        near = made[first : first + micro_batch]
        before = near[-1:] + near[:-1] if len(near) > 1 else made[first - 1 : first]
        for row, other in zip(near, before, strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return made
