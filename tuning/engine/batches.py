"""Documents packed into blocks, and the batch of any step as a pure function of (seed, step).

Because nothing is consumed, a resumed run needs no loader state: it asks for the next step's batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""A label without a loss."""


class Batch(NamedTuple):
    """One step's sequences, or a part of them."""

    input_ids: torch.Tensor
    """[sequences, block_size], int64."""
    labels: torch.Tensor
    """[sequences, block_size], int64: the token after each input, or IGNORED."""


def pack(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    block_size: int,
    num_blocks: int,
) -> np.ndarray:
    """The documents end to end, cut into blocks: [num_blocks, block_size + 1], int32.

    The eos token follows every document. A document may go on in the next block, and attention
    reaches across documents, as is usual in pre-training. Reads no more documents than it needs.

    Raises:
        ValueError: The documents end before the blocks are full.
    """
    needed = num_blocks * (block_size + 1)
    tokens = np.empty(needed, dtype=np.int32)
    filled = 0
    for ids in _encoded(iter(documents), tokenizer):
        taken = ids[: needed - filled]
        tokens[filled : filled + len(taken)] = taken
        filled += len(taken)
        if filled == needed:
            return tokens.reshape(num_blocks, block_size + 1)
    raise ValueError(f"the documents hold {filled} tokens; {num_blocks} blocks need {needed}")


def _encoded(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, chunk: int = 1000
) -> Iterator[list[int]]:
    while texts := list(islice(documents, chunk)):
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """An endless sequence of batches over fixed blocks; each epoch is one permutation of them."""

    blocks: np.ndarray
    """[num_blocks, block_size + 1], any integer type (a memory map will do)."""
    batch_size: int
    """Sequences in one batch."""
    seed: int
    """Seed of the order."""

    def at(self, step: int) -> Batch:
        """The batch of optimizer step `step`, counted from 0."""
        import torch

        first = step * self.batch_size
        rows = [self._row(place) for place in range(first, first + self.batch_size)]
        block = torch.from_numpy(self.blocks[rows].astype(np.int64))
        return Batch(block[:, :-1].contiguous(), block[:, 1:].contiguous())

    def _row(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.blocks))
        return int(self._order(epoch)[offset])

    def _order(self, epoch: int) -> np.ndarray:
        known: dict[int, np.ndarray] = self.__dict__.setdefault("_orders", {})
        if epoch not in known:
            known.clear()
            known[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.blocks))
        return known[epoch]
