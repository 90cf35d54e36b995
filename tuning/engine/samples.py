"""Samples: token ids, labels, and the numbers that batches are planned from.

A sample is a pure function of its index; lengths, numbers of loss tokens and attention costs of all
samples are known before any is read. Files are read by sources.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tuning.runs.errors import UserError

IGNORED = -100
"""A label without a loss."""
LARGEST_ID = 2**31 - 1
"""Tokens are kept as int32."""


class Sample(NamedTuple):
    """One sequence: a document, or pieces of several, end to end."""

    input_ids: np.ndarray
    """[length], int64."""
    labels: np.ndarray
    """[length], int64: the token after each input within its own document, or IGNORED."""
    documents: np.ndarray
    """[documents], int64: their lengths, in order; they add up to `length`."""


class Samples(Protocol):
    """Samples by index, with the numbers that batches are planned from."""

    @property
    def lengths(self) -> np.ndarray:
        """[n], int64: tokens."""

    @property
    def loss_tokens(self) -> np.ndarray:
        """[n], int64: labels that are not IGNORED."""

    @property
    def squares(self) -> np.ndarray:
        """[n], int64: sum of the squared lengths of the documents (the cost of attention)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class MockSamples:
    """Random tokens in documents of one length; a sample depends on the seed and its index only."""

    num_samples: int
    seq_len: int
    vocab_size: int
    seed: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """[n], int64: `seq_len`."""
        return np.full(self.num_samples, self.seq_len, dtype=np.int64)

    @property
    def loss_tokens(self) -> np.ndarray:
        """[n], int64: all tokens, since one more is drawn as the last label."""
        return self.lengths

    @cached_property
    def squares(self) -> np.ndarray:
        """[n], int64."""
        return self.lengths**2

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        place = range(len(self))[index]
        tokens = np.random.default_rng([self.seed, place]).integers(
            self.vocab_size, size=self.seq_len + 1, dtype=np.int64
        )
        return Sample(tokens[:-1].copy(), tokens[1:].copy(), np.array([self.seq_len]))


class Blocks:
    """A stream of documents cut into blocks of one length; the last block may be shorter.

    The part of a document that continues in another block is a document of its own there: attention
    does not reach back. The last token of a block keeps its label, the first of the next block.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        block_size: int,
        num_blocks: int | None = None,
    ) -> None:
        """
        Args:
            tokens: [tokens], any integer type (a memory map will do): the documents end to end.
            starts: [documents], increasing from 0: where each document begins.
            block_size: Tokens of a block.
            num_blocks: Only the first blocks (default: all, with the rest as a shorter block).

        Raises:
            ValueError: There are fewer blocks, or `starts` do not fit the tokens.
        """
        there = -(-len(tokens) // block_size)
        if num_blocks is not None and num_blocks > there:
            raise ValueError(
                f"{len(tokens)} tokens are {there} blocks of {block_size}; {num_blocks} are needed"
            )
        self.tokens = tokens
        self.starts = _checked_starts(starts, len(tokens))
        self.block_size = block_size
        self.num_blocks = there if num_blocks is None else num_blocks

    @property
    def _edges(self) -> np.ndarray:
        """[num_blocks + 1], int64: where each block begins, and where the last one ends."""
        edges = np.arange(self.num_blocks + 1, dtype=np.int64) * self.block_size
        return np.minimum(edges, len(self.tokens))

    @cached_property
    def lengths(self) -> np.ndarray:
        """[n], int64: `block_size`, or less in the last."""
        return np.diff(self._edges)

    @cached_property
    def loss_tokens(self) -> np.ndarray:
        """[n], int64: the length less the last tokens of documents."""
        edges = self._edges
        ended = np.searchsorted(self.starts, edges, side="right")
        return self.lengths - np.diff(ended + (edges == len(self.tokens)))

    @cached_property
    def squares(self) -> np.ndarray:
        """[n], int64: sum of the squared lengths of the pieces."""
        edges = self._edges
        inside = self.starts[: np.searchsorted(self.starts, edges[-1])]
        # Both are in order, so a stable sort merges them; a cut that is in both adds a piece of 0.
        cuts = np.sort(np.concatenate([inside, edges]), kind="stable")
        firsts = np.searchsorted(cuts, edges[:-1])
        return np.add.reduceat(np.diff(cuts) ** 2, firsts, dtype=np.int64)

    @property
    def largest_id(self) -> int:
        """The largest token id in the blocks; -1 without tokens."""
        return _largest(self.tokens[: self._edges[-1] + 1])

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Sample:
        first = range(len(self))[index] * self.block_size
        end = min(first + self.block_size, len(self.tokens))
        span = np.asarray(self.tokens[first : end + 1]).astype(np.int64)
        labels = np.full(end - first, IGNORED, dtype=np.int64)
        labels[: len(span) - 1] = span[1:]
        low, high = np.searchsorted(self.starts, (first, end), side="right")
        borders = self.starts[low:high] - first
        labels[borders - 1] = IGNORED
        inside = borders[borders < end - first]
        documents = np.diff(np.concatenate([[0], inside, [end - first]]))
        return Sample(span[: end - first].copy(), labels, documents)


def _checked_starts(starts: np.ndarray, tokens: int) -> np.ndarray:
    """Raise ValueError unless `starts` cut `tokens` tokens into documents, none of them empty."""
    starts = np.asarray(starts, dtype=np.int64)
    if not len(starts) and not tokens:
        return starts
    if not len(starts) or starts[0] != 0 or starts[-1] >= tokens or (np.diff(starts) < 1).any():
        raise ValueError(
            f"document starts must begin with 0 and strictly increase, all below {tokens}, "
            f"the number of tokens; they are {starts}"
        )
    return starts


class Rows:
    """Tokenized examples of fine-tuning, a document each, their labels shifted to the inputs."""

    def __init__(
        self, input_ids: Sequence[np.ndarray], labels: Sequence[np.ndarray], truncated: int = 0
    ) -> None:
        """
        Args:
            input_ids: [rows] arrays of [length].
            labels: The same shapes, in the form of Hugging Face: a token has itself for a label,
                or IGNORED.
            truncated: How many of them were cut to fit.

        Raises:
            ValueError: There are no rows, a row is empty, or has fewer or more labels than inputs.
        """
        self.truncated = truncated
        self.lengths = np.array([len(row) for row in input_ids], dtype=np.int64)
        if self.lengths.tolist() != [len(row) for row in labels]:
            raise ValueError("a row needs as many labels as input_ids")
        if not self.lengths.all() or not len(self.lengths):
            raise ValueError("there must be rows, and a token in each of them")
        self._ends = np.cumsum(self.lengths)
        self._input_ids = _flat(input_ids)
        shifted = np.roll(_flat(labels), -1)
        shifted[self._ends - 1] = IGNORED
        self._labels = shifted

    @cached_property
    def loss_tokens(self) -> np.ndarray:
        """[n], int64: labels that are not IGNORED; may be zero."""
        learnt = self._labels != IGNORED
        return np.add.reduceat(learnt, self._ends - self.lengths, dtype=np.int64)

    @cached_property
    def squares(self) -> np.ndarray:
        """[n], int64: the squared lengths."""
        return self.lengths**2

    @property
    def largest_id(self) -> int:
        """The largest token id among inputs and labels."""
        return max(_largest(self._input_ids), _largest(self._labels))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        place = range(len(self))[index]
        end, length = self._ends[place], self.lengths[place]
        row = slice(end - length, end)
        return Sample(
            self._input_ids[row].astype(np.int64),
            self._labels[row].astype(np.int64),
            np.array([length]),
        )


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays end to end, int32."""
    flat = np.concatenate(arrays)
    if flat.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, not {flat.dtype}")
    if _largest(flat) > LARGEST_ID:
        raise ValueError(f"token id {_largest(flat)} is above {LARGEST_ID}")
    return flat.astype(np.int32)


class Subset:
    """Some of other samples."""

    def __init__(self, samples: Samples, indices: np.ndarray) -> None:
        self.samples = samples
        self.indices = np.asarray(indices, dtype=np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[n], int64."""
        return self.samples.lengths[self.indices]

    @cached_property
    def loss_tokens(self) -> np.ndarray:
        """[n], int64."""
        return self.samples.loss_tokens[self.indices]

    @cached_property
    def squares(self) -> np.ndarray:
        """[n], int64."""
        return self.samples.squares[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[int(self.indices[index])]


def split(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """(training samples, validation samples), each in their original order.

    The rounded share is held out, drawn with `seed`, and at least one sample is on either side; a
    share of zero holds out nothing. Blocks are drawn, not documents: a document may be on both
    sides.

    Raises:
        ValueError: The share is outside [0, 1).
        UserError: There are too few samples to split.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share is {share}; it must be in [0, 1)")
    total = len(samples)
    if share and total < 2:
        raise UserError(
            f"--validation_split {share} needs at least 2 samples and the data has {total}; give "
            f"more data, or other data as --validation_data_path"
        )
    held = min(max(round(total * share), 1), total - 1) if share else 0
    order = np.random.default_rng(seed).permutation(total)
    return Subset(samples, np.sort(order[held:])), Subset(samples, np.sort(order[:held]))


def check_vocabulary(data: Samples | np.ndarray | int, vocab_size: int, path: str | Path) -> None:
    """Raise UserError if a token id is outside the vocabulary; an int is the largest id."""
    if isinstance(data, Rows | Blocks):
        largest = data.largest_id
    elif isinstance(data, np.ndarray | int):
        largest = _largest(np.asarray(data).reshape(-1))
    else:
        every = (data[index] for index in range(len(data)))
        largest = max((_largest(part) for sample in every for part in sample[:2]), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"'{path}' has the token id {largest} and the model has the ids 0 to {vocab_size - 1}; "
            f"tokenize with the tokenizer of the model, or raise --vocab_size of a new model"
        )


def _largest(tokens: np.ndarray) -> int:
    return int(tokens.max()) if len(tokens) else -1
