"""What has been spent: examples seen after some optimizer steps."""

from __future__ import annotations

import math


def steps_per_epoch(train_size: int, effective_batch_size: int) -> int:
    """Optimizer steps of one pass; the last batch may be smaller."""
    return math.ceil(train_size / effective_batch_size)


def total_steps(train_size: int, effective_batch_size: int, epochs: float) -> int:
    """Optimizer steps of a whole run."""
    return math.ceil(epochs * steps_per_epoch(train_size, effective_batch_size))


def data_points_seen(step: int, train_size: int, effective_batch_size: int) -> int:
    """Examples consumed after `step` optimizer steps, repeats included."""
    epochs, rest = divmod(step, steps_per_epoch(train_size, effective_batch_size))
    return epochs * train_size + min(rest * effective_batch_size, train_size)


def data_used(step: int, train_size: int, effective_batch_size: int) -> int:
    """Different examples consumed: each epoch is one permutation of the same ones."""
    return min(data_points_seen(step, train_size, effective_batch_size), train_size)
