"""The batch of an optimizer step and its split over ranks, as a pure function of (seed, step).

There is no loader state to resume: a resumed run computes the next step's batch. The global batch
is a number of samples, whatever the number of processes. Each epoch is one permutation of the
samples, and its last batch may be smaller.
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
    """The input of one forward pass: samples end to end, and this process's part of them."""

    input_ids: torch.Tensor
    """[1, part], int64."""
    position_ids: torch.Tensor
    """[1, part], int64: positions within the documents."""
    kept: torch.Tensor
    """[counted], int64: the positions in this part that have a loss."""
    targets: torch.Tensor
    """[counted], int64: their labels, the tokens that follow."""
    documents: Documents
    """Of the whole row, over all processes that share it."""
    tokens: int
    """Of the whole row, without padding."""


@dataclass(frozen=True)
class StepBatch:
    """The work of all processes in one optimizer step."""

    shares: list[list[list[int]]]
    """[micro-step][data-parallel rank] -> indices of samples."""
    samples: int
    tokens: int
    loss_tokens: int
    squares: float
    """Sum of the squared lengths of all documents."""
    fill: float
    """Share of the token budget that is used."""
    balance: float
    """Mean over highest cost of the ranks of a micro-step: 1.0 if no rank waits."""
    epoch: float
    """Passes over the data after this step."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a training, with `micro_batch` samples or up to `max_tokens` a row."""

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
    """Cost of attention: of a squared token, in tokens; for balancing ranks."""
    longest: int | None = None
    """An upper bound on the length of a document, the same for all rows."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def over(self, samples: Samples, global_batch: int | None = None) -> Batches:
        """Batches of other samples, packed in the same way; as many a step unless given."""
        size = global_batch or self.global_batch
        return replace(self, samples=samples, global_batch=size, seed=0, _orders={})

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return math.ceil(len(self.samples) / self.global_batch)

    def chosen(self, step: int) -> np.ndarray:
        """The indices of the samples of step `step`, counted from 0, in order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            generator = np.random.default_rng([self.seed, epoch])
            self._orders[epoch] = generator.permutation(len(self.samples))
        first = place * self.global_batch
        return self._orders[epoch][first : first + self.global_batch]

    def at(self, step: int) -> StepBatch:
        """The batch of step `step`, counted from 0, split over micro-steps and ranks."""
        chosen = self.chosen(step)
        lengths, squares = self.samples.lengths[chosen], self.samples.squares[chosen]
        ranks = self.layout.dp_size
        if self.max_tokens is not None:
            shares = pack(
                lengths,
                capacity=self.max_tokens,
                ranks=ranks,
                squares=squares,
                quadratic=self.quadratic,
            )
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
        """This process's rows of a step, one a micro-step."""
        return [self.row(micro[self.layout.dp_rank], device) for micro in batch.shares]

    def row(self, numbers: Sequence[int], device: torch.device) -> Row:
        """Samples end to end as a row; for no samples, a padding token without a loss."""
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
    """Samples in order, `micro_batch` a row, assigned to ranks in turn."""
    rows = [list(range(i, min(i + micro_batch, samples))) for i in range(0, samples, micro_batch)]
    rows += [[] for _ in range(-len(rows) % ranks)]
    return [rows[i : i + ranks] for i in range(0, len(rows), ranks)]
