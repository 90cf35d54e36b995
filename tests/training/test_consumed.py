"""The count of what a trainer consumed, and what it notices."""

from __future__ import annotations

import math
import random

import pytest

from tuning.runs.errors import StageFailed
from tuning.training.consumed import Consumed, key_of

pytestmark = pytest.mark.unit

KEYS = [key_of([n]) for n in range(10)]


def batches(epochs: int, batch: int, *, whole: bool = False, rows: int = 1) -> list[list[bytes]]:
    """Steps of epochs that are a permutation of the rows each."""
    made: list[list[bytes]] = []
    for epoch in range(epochs):
        order = random.Random(epoch).sample(KEYS, len(KEYS))
        steps = [order[i : i + batch * rows] for i in range(0, len(order), batch * rows)]
        made += [step for step in steps if len(step) == batch * rows or not whole]
    return made


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
@pytest.mark.parametrize("whole", [False, True])
def test_epochs_pass(batch, whole):
    consumed = Consumed(KEYS, batch, whole_batches=whole)
    steps = batches(3, batch, whole=whole)
    for step, keys in enumerate(steps, 1):
        consumed.add(keys)
        consumed.check(step)
    assert consumed.seen == sum(map(len, steps))
    assert consumed.used == len({key for keys in steps for key in keys})


def test_rows_of_pairs_are_half_an_example():
    consumed = Consumed(KEYS, 2, rows_per_example=2)
    for step, keys in enumerate(batches(2, 2, rows=2), 1):
        consumed.add(keys)
        consumed.check(step)
    assert (consumed.examples, consumed.seen, consumed.used) == (5, 10, 5)


def test_equal_rows_count_as_many():
    consumed = Consumed([KEYS[0], KEYS[0], KEYS[1]], 3)
    consumed.add([KEYS[0], KEYS[1], KEYS[0]])
    consumed.check(1)
    assert (consumed.seen, consumed.used) == (3, 3)


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (KEYS[:3], "4 rows should have been trained on as they are; 3 were, and 0 others"),
        (KEYS[:5], "4 rows should have been trained on as they are; 5 were, and 0 others"),
        ([*KEYS[:3], KEYS[0]], "4 rows should have been trained on as they are; 4 were"),
        ([*KEYS[:3], key_of([3, 4])], "3 were, and 1 others"),
        ([], "0 were, and 0 others"),
    ],
    ids=["dropped", "more", "repeated", "cut", "none"],
)
def test_what_differs_from_the_plan_is_noticed_at_once(step, found):
    consumed = Consumed(KEYS, 4)
    consumed.add(step)
    with pytest.raises(StageFailed, match=found) as caught:
        consumed.check(1)
    assert "trl 1." in str(caught.value)


def test_a_resumed_count_goes_on():
    steps = batches(2, 4)
    first, second = Consumed(KEYS, 4), Consumed(KEYS, 4)
    for keys in steps[:4]:
        first.add(keys)
    second.load(first.state())
    for step, keys in enumerate(steps[4:], 5):
        second.add(keys)
        second.check(step)
    assert (second.seen, second.used) == (20, 10)
    assert math.ceil(len(steps) / 2) == 3


@pytest.mark.parametrize("saved", [None, [1, 2]])
def test_a_checkpoint_without_these_counts_is_refused(saved):
    with pytest.raises(StageFailed, match="does not say which examples"):
        Consumed(KEYS, 4).load(saved)
