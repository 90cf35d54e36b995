"""Observations as JSON lines, also those that were cut off, and numbers that cannot be."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tests.autotune.small import failed, ran
from tuning.autotune.observation import OUTCOMES, History
from tuning.autotune.space import Candidate

pytestmark = pytest.mark.unit
ONE = Candidate(micro_batch=2, sharding="full_shard")
OK = ran(ONE, memory=0.5, mfu=0.4)


def test_what_is_written_is_read(tmp_path):
    history = History(tmp_path / "new" / "history.jsonl")
    assert history.read() == []
    all_of_them = [OK, *(failed(ONE, outcome) for outcome in OUTCOMES if outcome != "ok")]
    for observation in all_of_them:
        history.append(observation)
    assert history.read() == all_of_them


def test_a_line_that_was_cut_is_passed_over_and_the_next_is_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    whole = json.dumps(OK.to_json())
    for cut in range(1, len(whole), 7):
        path.write_text(whole + "\n" + whole[:cut])
        assert History(path).read() == [OK]
        History(path).append(failed(ONE, "oom"))
        assert History(path).read() == [OK, failed(ONE, "oom")]


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[]", b"{}", b'{"outcome": "ok"}', b'{"candidate": 3, "outcome": "ok"}',
     b'{"candidate": {}, "outcome": "fine"}', b'{"candidate": [], "outcome": ["ok"]}',
     b'{"candidate": {}, "outcome": "ok", "step_seconds": 3}'],
)  # fmt: skip
def test_lines_that_are_no_observation_are_passed_over(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line + b"\n" + json.dumps(OK.to_json()).encode() + b"\n")
    assert History(path).read() == [OK]


@pytest.mark.parametrize(
    "changes",
    [
        {"step_seconds": ()},
        {"step_seconds": (0.0,)},
        {"step_seconds": (math.nan,)},
        {"peak_bytes": None},
        {"peak_bytes": -1},
        {"tokens_per_second": math.inf},
        {"mfu": 1.5},
        {"mfu": -0.1},
        {"mfu": math.nan},
    ],
)
def test_numbers_that_cannot_be_are_garbage(changes):
    checked = replace(OK, **changes).checked()
    assert checked.outcome == "garbage"
    assert "impossible" in checked.note
    assert OK.checked() == OK
