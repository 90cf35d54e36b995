"""Kahneman-Tversky optimization (Ethayarajh et al. 2024) with TRL, on unpaired rows made from the
pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from tuning.data.encoding import EncodedPair
from tuning.runs.rundir import RunDirectory
from tuning.training import preference, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config import largest_divisor
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed, CountsRows, Key, ids_of, key_of
from tuning.training.pools import preference_pairs
from tuning.training.start import Start


class _Trainer(CountsRows, WholeCheckpoints, KTOTrainer):
    """TRL's trainer on rows that are encoded already, with checkpoints that are whole."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def rows_in(self, inputs: Any) -> list[Key]:
        learnt = inputs["completion_mask"][:, 1:].any(dim=1).tolist()
        rows = zip(ids_of(inputs), inputs["label"].tolist(), learnt, strict=True)
        return [key_of(ids, note=label) for ids, label, counts in rows if counts]


def unpaired(pairs: Sequence[EncodedPair], seed: int, micro_batch: int) -> list[dict[str, Any]]:
    """Two rows a pair, in a seeded order: the ids of prompt and completion, whether it was chosen,
    and the completion of its neighbour.

    The trainer reads rows in order and estimates its KL term from prompts with the completions of
    their neighbours in the micro-batch, so they are shuffled here.
    """
    made = [
        {"prompt_ids": pair.prompt, "completion_ids": answer, "label": chosen}
        for pair in pairs
        for answer, chosen in ((pair.chosen, True), (pair.rejected, False))
    ]
    random.Random(seed).shuffle(made)
    for first in range(0, len(made), micro_batch):
        near = made[first : first + micro_batch]
        for row, before in zip(near, near[-1:] + near[:-1], strict=True):
            row["KL_completion_ids"] = before["completion_ids"]
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
    pairs = preference_pairs(config, prepared.tokenizer, start.train_size)
    rows = unpaired(pairs, config.training.seed, micro)
    trainer = _Trainer(
        model=prepared.model,
        args=KTOConfig(**arguments, beta=config.training.beta, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=prepared.tokenizer,
        peft_config=prepared.peft_config,
    )
    keys = [key_of(row["prompt_ids"] + row["completion_ids"], note=row["label"]) for row in rows]
    consumed = Consumed(keys, prepared.batch, rows_per_example=2)
    preference.run(trainer, prepared, config, directory, start, consumed)
