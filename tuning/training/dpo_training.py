"""Direct preference optimization (Rafailov et al. 2023) with TRL."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tuning.engine import ranks
from tuning.runs.rundir import RunDirectory
from tuning.training import preference, trainers
from tuning.training.checkpoints import WholeCheckpoints
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed, CountsRows, Key, ids_of, key_of
from tuning.training.pools import preference_pairs
from tuning.training.shares import SHARE, SharesSteps
from tuning.training.start import Start


class _Trainer(SharesSteps, CountsRows, WholeCheckpoints, DPOTrainer):
    """TRL's trainer on pairs that are encoded already, with checkpoints that are whole and a loss
    that is that of the whole batch.

    TRL takes means within each micro-batch, of pairs and, for the language-model term, of tokens;
    weighing each mean by its share of the step's pairs or tokens, over all processes, makes the
    micro-batch and the number of processes a matter of memory and time alone.
    """

    sft_loss_weight: float

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def rows_in(self, inputs: Any) -> list[Key]:
        ids, pairs = ids_of(inputs), _pairs(inputs)
        learnt = inputs["completion_mask"][:, 1:].any(dim=1).tolist()
        return [
            key_of(ids[i], ids[i + pairs]) for i in range(pairs) if learnt[i] and learnt[i + pairs]
        ]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        own = [(_pairs(b), _chosen_tokens(b)) for b in batches if b.get(SHARE, 1.0)]
        counts = ranks.total(torch.tensor(own, dtype=torch.int64).reshape(-1, 2).sum(dim=0))
        self._pairs, self._tokens = counts.tolist()
        self._means = len(batches) * ranks.world_size()
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        own = self._means if self.share else 0
        pairs = own * _pairs(inputs) / self._pairs
        tokens = own * _chosen_tokens(inputs) / max(self._tokens, 1)
        weights = {"sigmoid": pairs, "sft": self.sft_loss_weight * tokens}
        self.loss_weights = [weights[name] for name in self.loss_types]
        return super().compute_loss(model, inputs, *args, **kwargs)


def _pairs(batch: Any) -> int:
    """Preference pairs in a micro-batch; chosen answers precede rejected ones."""
    return int(batch["input_ids"].shape[0]) // 2


def _chosen_tokens(batch: Any) -> int:
    """Tokens of the chosen answers that have a loss."""
    mask = batch["completion_mask"]
    return int(mask[: mask.shape[0] // 2, 1:].sum())


def train(config: PTRunConfig, directory: RunDirectory, start: Start, report_to: list[str]) -> None:
    """Train, or continue, the run in `directory` and leave its model there."""
    prepared = preference.prepare(config, directory, start)
    weight = config.training.sft_loss_weight
    pairs = preference_pairs(config, prepared.tokenizer, start.train_size)
    trainer = _Trainer(
        model=prepared.model,
        ref_model=prepared.reference(config),
        args=DPOConfig(
            **trainers.arguments(config, directory, report_to, prepared.steps, prepared.batch),
            beta=config.training.beta,
            max_length=None,
            loss_type=["sigmoid", "sft"] if weight else ["sigmoid"],
            loss_weights=[1.0, weight] if weight else None,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected}
                for p in pairs
            ]
        ),
        processing_class=prepared.tokenizer,
        peft_config=prepared.peft_config,
    )
    trainer.sft_loss_weight = weight
    keys = [key_of(p.prompt + p.chosen, p.prompt + p.rejected) for p in pairs]
    consumed = Consumed(keys, prepared.batch)
    preference.run(trainer, prepared, config, directory, start, consumed)
