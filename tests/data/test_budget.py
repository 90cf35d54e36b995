"""Examples seen and used, against going through the batches."""

from __future__ import annotations

import pytest

from tuning.data.budget import data_points_seen, data_used, steps_per_epoch, total_steps

pytestmark = pytest.mark.unit

SIZES = [(1, 1), (1, 16), (16, 16), (17, 16), (100, 16), (100, 32), (96, 32), (5, 2)]


def batches(size: int, batch: int, epochs: int) -> list[list[int]]:
    one = [list(range(size))[i : i + batch] for i in range(0, size, batch)]
    return one * epochs


@pytest.mark.parametrize(("size", "batch"), SIZES)
def test_it_is_what_the_batches_hold(size, batch):
    walk = batches(size, batch, 3)
    assert len(walk) == total_steps(size, batch, 3)
    for step in range(len(walk) + 1):
        seen = [example for taken in walk[:step] for example in taken]
        assert data_points_seen(step, size, batch) == len(seen)
        assert data_used(step, size, batch) == len(set(seen))


@pytest.mark.parametrize(
    ("size", "batch", "epochs", "steps"),
    [
        (100, 16, 1.0, 7),
        (100, 16, 2.0, 14),
        (96, 16, 2.0, 12),
        (100, 16, 0.5, 4),
        (100, 16, 0.01, 1),
        (1, 16, 1.0, 1),
        (2000, 32, 2.0, 126),
    ],
)
def test_steps(size, batch, epochs, steps):
    assert total_steps(size, batch, epochs) == steps


def test_the_last_batch_of_an_epoch_may_be_smaller():
    assert steps_per_epoch(100, 16) == 7
    assert data_points_seen(6, 100, 16) == 96
    assert data_points_seen(7, 100, 16) == 100
    assert data_points_seen(8, 100, 16) == 116
    assert data_used(8, 100, 16) == 100
