"""The batch of any optimizer step, and how it is shared out, as a pure function of (seed, step).

Nothing is consumed, so a resumed run needs no loader state: it asks for the next step's batch. The
global batch is a number of samples and does not depend on how many processes there are. Each epoch
is one permutation of the samples, and its last batch is smaller where they do not divide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from tuning.engine.attention import Documents
from tuning.engine.packing import balance, pack
from tuning.engine.ranks import Layout
from tuning.engine.samples import IGNORED, Samples


class Row(NamedTuple):
    """One forward pass of a process: samples end to end, and this process's part of them."""

    input_ids: torch.Tensor
    """[1, part], int64."""
    position_ids: torch.Tensor
    """[1, part], int64: places in the documents."""
    kept: torch.Tensor
    """[counted], int64: the places in this part where a token counts."""
    targets: torch.Tensor
    """[counted], int64: the tokens that follow there."""
    documents: Documents
    """Of the whole row, over all processes that share it."""
    tokens: int
    """Of the whole row, without the fill."""


@dataclass(frozen=True)
class StepBatch:
    """What all processes do in one optimizer step."""

    shares: list[list[list[int]]]
    """[micro-step][data-parallel rank] -> the numbers of the samples."""
    samples: int
    tokens: int
    loss_tokens: int
    squares: float
    """Sum of the squared lengths of all documents."""
    fill: float
    """Share of the token budget that is used."""
    balance: float
    """Mean over highest cost of the ranks of a micro-step: 1.0 where none waits."""
    epoch: float
    """Passes over the data when the step is done."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a training; either `micro_batch` samples or at most `max_tokens` a row."""

    samples: Samples
    global_batch: int
    """Samples of one optimizer step."""
    seed: int
    layout: Layout
    micro_batch: int | None = None
    """Samples of one row."""
    max_tokens: int | None = None
    """Most tokens of one row; samples are packed so that the ranks' cost is balanced."""
    quadratic: float = 0.0
    """Cost of a squared token in tokens (attention), for the balance."""
    longest: int | None = None
    """A bound on the length of a document that holds for all rows."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def over(self, samples: Samples, global_batch: int | None = None) -> Batches:
        """Batches of other samples, packed alike; as many a step unless it is said."""
        size = global_batch or self.global_batch
        return replace(self, samples=samples, global_batch=size, seed=0, _orders={})

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return math.ceil(len(self.samples) / self.global_batch)

    def chosen(self, step: int) -> np.ndarray:
        """The numbers of the samples of step `step`, counted from 0, in their order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            generator = np.random.default_rng([self.seed, epoch])
            self._orders[epoch] = generator.permutation(len(self.samples))
        first = place * self.global_batch
        return self._orders[epoch][first : first + self.global_batch]

    def at(self, step: int) -> StepBatch:
        """The batch of step `step`, counted from 0, and everyone's share of it."""
        chosen = self.chosen(step)
        lengths, squares = self.samples.lengths[chosen], self.samples.squares[chosen]
        ranks = self.layout.dp_size
        if self.max_tokens is not None:
            shares = pack(
                lengths, capacity=self.max_tokens, ranks=ranks, squares=squares,
                quadratic=self.quadratic,
            )  # fmt: skip
            budget = self.max_tokens
        else:
            shares = _evenly(len(chosen), self.micro_batch or len(chosen), ranks)
            budget = (self.micro_batch or len(chosen)) * int(self.samples.lengths.max())
        tokens = int(lengths.sum())
        return StepBatch(
            shares=[[[int(chosen[i]) for i in part] for part in micro] for micro in shares],
            samples=len(chosen),
            tokens=tokens,
            loss_tokens=int(self.samples.loss_tokens[chosen].sum()),
            squares=float(squares.sum()),
            fill=tokens / (budget * ranks * len(shares)),
            balance=balance(shares, lengths + self.quadratic * squares),
            epoch=(step + 1) / self.steps_per_epoch,
        )

    def rows(self, batch: StepBatch, device: torch.device) -> list[Row]:
        """This process's forward passes of a step, one a micro-step."""
        return [self.row(micro[self.layout.dp_rank], device) for micro in batch.shares]

    def row(self, numbers: Sequence[int], device: torch.device) -> Row:
        """Samples end to end as a row; without any, one token that counts for nothing."""
        parts = [self.samples[number] for number in numbers]
        tokens = sum(len(part.input_ids) for part in parts)
        fill = -tokens % self.layout.sep_size or (0 if parts else self.layout.sep_size)
        empty = np.zeros(fill, dtype=np.int64)
        lengths = [part.documents for part in parts] + ([np.array([fill])] if fill else [])
        documents = Documents(np.concatenate(lengths), device, self.longest)
        here = self.layout.part(tokens + fill)

        input_ids = np.concatenate([*(part.input_ids for part in parts), empty])
        labels = np.concatenate([*(part.labels for part in parts), empty + IGNORED])[here]
        kept = np.flatnonzero(labels != IGNORED)

        def there(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return Row(
            input_ids=there(input_ids[None, here]),
            position_ids=there(documents.positions[None, here]),
            kept=there(kept),
            targets=there(labels[kept]),
            documents=documents,
            tokens=tokens,
        )


def _evenly(samples: int, micro_batch: int, ranks: int) -> list[list[list[int]]]:
    """Samples in their order, `micro_batch` a row, dealt to the ranks."""
    rows = [list(range(i, min(i + micro_batch, samples))) for i in range(0, samples, micro_batch)]
    rows += [[] for _ in range(-len(rows) % ranks)]
    return [rows[i : i + ranks] for i in range(0, len(rows), ranks)]
