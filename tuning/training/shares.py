"""How the processes of one training share its optimizer steps under TRL.

A step is computed from the same rows in the same order whatever the number of processes: the rows
of a pass are taken in the order of one process, and each rank gets its part of them. The Trainer's
own way repeats rows so that every rank has as many, and would train on more than was planned. A
rank that has no row of a pass, at the end of an epoch, computes one with a weight of zero, since
all ranks reduce their gradients together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from tuning.data.encoding import IGNORED
from tuning.runs.ranks import rank, world_size
from tuning.training import sharded
from tuning.training.consumed import Consumed

SHARE = "share"
"""Key in a micro-batch: how much its mean weighs in the mean over ranks; 0 for a rank that has no
row of the pass, 1 where all ranks have as many.
"""
Place = tuple[int, float]
"""The number of a row, and the share of the micro-batch that it is in."""


class Shares(Sampler[list[Place]]):
    """The micro-batches of one rank: its parts of passes of `pass_rows` rows over all ranks, which
    begin anew with each step of `step_rows` rows.
    """

    def __init__(
        self, order: Any, step_rows: int, pass_rows: int, *, at: int = 0, of: int = 1
    ) -> None:
        self.order, self.step_rows, self.pass_rows = order, step_rows, pass_rows
        self.at, self.of = at, of

    @property
    def batch_sampler(self) -> Shares:
        """Where the Trainer, which expects a wrapper around it, sets the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, left = divmod(len(self.order), self.step_rows)
        passes = math.ceil(self.step_rows / self.pass_rows)
        return whole * passes + math.ceil(left / self.pass_rows)

    def __iter__(self) -> Iterator[list[Place]]:
        rows = list(self.order)
        for first in range(0, len(rows), self.step_rows):
            step = rows[first : first + self.step_rows]
            for begin in range(0, len(step), self.pass_rows):
                yield self._part(step[begin : begin + self.pass_rows])

    def _part(self, rows: list[int]) -> list[Place]:
        count = len(rows)
        own = rows[self.at * count // self.of : (self.at + 1) * count // self.of]
        share = len(own) * self.of / count
        return [(row, share) for row in own or rows[:1]]


class _Placed(Dataset[tuple[Any, float]]):
    """Rows by their place."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> tuple[Any, float]:
        return self.rows[place[0]], place[1]


def _collated(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """What makes a micro-batch of rows, with its share in it; a list of rows stays one."""

    def collated(items: list[Any]) -> Any:
        batch, share = collate([row for row, _ in items]), items[0][1]
        if isinstance(batch, MutableMapping):
            batch[SHARE] = share
            if not share and "labels" in batch:
                batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return batch

    return collated


class SharesSteps:
    """Mixed into a Trainer: several processes share its steps as above. With one process it does
    nothing.
    """

    share: float = 1.0
    """Of the micro-batch that is computed."""
    consumed: Consumed

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        sharded.enable_on_cpu(self)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        trainer: Any = self
        if world_size() == 1 or not is_training:
            given = (dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
            return super()._get_dataloader(*given)  # type: ignore[misc]
        rows = trainer._remove_unused_columns(dataset, description=description)
        order: Any = sampler_fn(rows) if sampler_fn else None
        if isinstance(order, RandomSampler):  # as accelerate has it for one process
            order = SeedableRandomSampler(rows, data_seed=trainer.args.data_seed)
        step, passes = self.consumed.step_rows, trainer.args.gradient_accumulation_steps
        if step is None:  # all that is sampled for a step is taken in one
            step, passes = batch_size * world_size(), 1
        shares = Shares(
            SequentialSampler(rows) if order is None else order,
            step,
            math.ceil(step / passes),
            at=rank(),
            of=world_size(),
        )
        return DataLoader(
            _Placed(rows),
            batch_sampler=shares,
            collate_fn=_collated(trainer.data_collator),
            pin_memory=trainer.args.dataloader_pin_memory,
        )

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, MutableMapping):
            self.share = inputs.pop(SHARE, 1.0)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if not self.share:
            inputs = {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)  # type: ignore[misc]
