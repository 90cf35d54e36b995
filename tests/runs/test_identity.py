"""Hashes, numbers and differences."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tuning.runs.identity import differences, digest, number

pytestmark = pytest.mark.unit


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest({"a": 1}) != digest({"a": "1"})


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_a_digest_is_the_same_in_every_process(seed):
    value = {"name": "ä", "rate": 5e-05, "sizes": [1, 2], "none": None, "flag": True}
    code = f"from tuning.runs.identity import digest; print(digest({value!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(value)
    assert digest(value) == "ec8b19ca56747737f0f19b0ed8cb0cb5cc042de3d6c49ec3dcee6af33748654a"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2, "2.0"),
        (2.0, "2.0"),
        (1.25, "1.25"),
        (1.4, "1.4"),
        (1.10, "1.1"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.0000001, "1.0000001"),
        (10, "10.0"),
        (123456.5, "123456.5"),
    ],
)
def test_numbers_have_the_fewest_digits_that_round_trip(value, shown):
    assert number(value) == shown
    assert float(number(value)) == value


def test_differences_name_the_nested_setting():
    ours = {"a": 1, "b": {"c": 2, "d": [1]}, "e": 5}
    theirs = {"a": 1, "b": {"c": 3, "d": [1, 2]}}
    assert differences(ours, theirs) == ["b.c: 3 -> 2", "b.d: [1, 2] -> [1]", "e: None -> 5"]
    assert differences(ours, ours) == []
