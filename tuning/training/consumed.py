"""Counts the examples that a trainer really consumes, from the batches that it trains on.

Budgets are planned from steps and batch sizes. A library that drops, cuts or repeats rows would
make them wrong in silence; it is noticed here at the first step, whatever its version does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from tuning.data.budget import data_points_seen, steps_per_epoch
from tuning.runs.errors import StageFailed

Key = bytes
LIBRARIES = ("trl", "transformers", "accelerate", "datasets")


class Consumed:
    """How often each row was trained on.

    A row is told by its tokens. `rows_per_example` rows are one example of the budget: two for
    unpaired rows made of pairs.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        batch: int,
        *,
        rows_per_example: int = 1,
        whole_batches: bool = False,
    ) -> None:
        """
        Args:
            keys: Of every row; equal rows are counted together.
            batch: Examples of an optimizer step; the last one of an epoch may have fewer.
            rows_per_example: See above.
            whole_batches: The last batch of an epoch is left out instead.
        """
        keys = list(keys)
        self.whole_batches = whole_batches
        self.examples = len(keys) // rows_per_example
        self.batch = batch
        self.rows_per_example = rows_per_example
        self._copies: dict[Key, int] = {}
        for key in keys:
            self._copies[key] = self._copies.get(key, 0) + 1
        self._counts = dict.fromkeys(self._copies, 0)
        self._strangers = 0
        self._new: list[Key] = []

    def note(self, keys: Iterable[Key]) -> None:
        """Note the rows of this process's micro-batch that give a gradient."""
        self._new += keys

    def noted(self) -> list[Key]:
        """What was noted since the last call; to be added on all processes."""
        new, self._new = self._new, []
        return new

    def add(self, keys: Iterable[Key]) -> None:
        """Count rows of a step, of whichever process."""
        for key in keys:
            if key in self._counts:
                self._counts[key] += 1
            else:
                self._strangers += 1

    @property
    def step_rows(self) -> int | None:
        """Rows of a whole step in the order of the epoch; None where it takes them otherwise."""
        return None if self.whole_batches else self.batch * self.rows_per_example

    @property
    def seen(self) -> int:
        """Examples consumed, repeats included."""
        return sum(self._counts.values()) // self.rows_per_example

    @property
    def used(self) -> int:
        """Different examples consumed."""
        rows = sum(min(count, self._copies[key]) for key, count in self._counts.items())
        return rows // self.rows_per_example

    def check(self, step: int) -> None:
        """Raise StageFailed unless `step` optimizer steps consumed as many examples as they should,
        none of them more often than there were epochs.
        """
        planned = self.rows_per_example * self._planned(step)
        found = sum(self._counts.values())
        most = max(math.ceil(count / self._copies[key]) for key, count in self._counts.items())
        if self._strangers or found != planned or most > self._epochs(step):
            raise StageFailed(self._wrong(step, planned, found))

    def _planned(self, step: int) -> int:
        if self.whole_batches:
            return step * self.batch
        return data_points_seen(step, self.examples, self.batch)

    def _epochs(self, step: int) -> int:
        """Epochs that were begun."""
        whole = max(self.examples // self.batch, 1)
        steps = whole if self.whole_batches else steps_per_epoch(self.examples, self.batch)
        return math.ceil(step / steps)

    def _wrong(self, step: int, planned: int, found: int) -> str:
        used = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        return (
            f"after step {step}, {planned} rows should have been trained on as they are; {found} "
            f"were, and {self._strangers} others. A library drops, cuts or repeats rows ({used}); "
            "install the versions of requirements.txt."
        )

    def state(self) -> list[int]:
        """The counts, for a checkpoint."""
        return list(self._counts.values())

    def load(self, counts: Sequence[int] | None) -> None:
        """Continue from the counts of a checkpoint."""
        if counts is None or len(counts) != len(self._counts):
            raise StageFailed(
                "the checkpoint does not say which examples were trained on: another version of "
                "tuning wrote it. Train the run anew with --force."
            )
        self._counts = dict(zip(self._counts, counts, strict=True))


class CountsRows:
    """Mixed into a Trainer: counts the rows of each micro-batch as it is trained on."""

    consumed: Consumed
    share: float = 1.0

    def rows_in(self, inputs: Any) -> list[Key]:
        """The rows of a micro-batch that give a gradient."""
        raise NotImplementedError

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.share:
            self.consumed.note(self.rows_in(inputs))
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]


def key_of(*sequences: Sequence[int], note: object = "") -> Key:
    """The key of a row of one or several sequences of token ids."""
    text = "|".join(" ".join(map(str, ids)) for ids in sequences)
    return hashlib.blake2b(f"{note}:{text}".encode(), digest_size=12).digest()


def ids_of(inputs: Any) -> list[list[int]]:
    """The token ids of each sequence of a padded batch, without padding."""
    pairs = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    return [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]
