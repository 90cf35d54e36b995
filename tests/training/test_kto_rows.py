"""The rows of KTO: which share a micro-batch, and whose completion each is compared with."""

from __future__ import annotations

import pytest

from tuning.training.config import largest_divisor
from tuning.training.kto_training import micro_batch, with_neighbours

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("batch", range(1, 25))
@pytest.mark.parametrize("most", [2, 8, 32])
def test_pairs_stay_together_and_micro_batches_divide_the_step(batch, most):
    assert micro_batch(batch, 2, most) == 2 * largest_divisor(batch, most // 2)
    if batch > 1:
        alone = micro_batch(batch, 1, most)
        assert alone >= 2 and batch % alone == 0
        assert alone <= most or all(batch % n for n in range(2, most + 1))


@pytest.mark.parametrize("count", [8, 9, 11])
def test_every_row_has_the_completion_of_another_one_near_it(count):
    rows = [{"prompt_ids": [n], "completion_ids": [n], "label": n % 2 == 0} for n in range(count)]
    made = with_neighbours(rows, seed=3, micro_batch=4)
    assert sorted(row["completion_ids"][0] for row in made) == list(range(count))
    for first in range(0, count, 4):
        near = made[first : first + 4]
        whole = len(near) > 1
        others = [row["KL_completion_ids"] for row in near]
        assert not whole or sorted(others) == sorted(row["completion_ids"] for row in near)
        assert all(row["KL_completion_ids"] != row["completion_ids"] for row in near)
