"""The picture of a search."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.autotune.searches import candidate
from tuning.autotune.observation import Observation
from tuning.autotune.picture import drawn, frontier, ticks
from tuning.autotune.score import Scorer

pytestmark = pytest.mark.unit


def ran(micro: int, memory: float, speed: float) -> Observation:
    return Observation(
        candidate=candidate(micro_batch=micro), outcome="ok", step_seconds=(1.0,),
        peak_bytes=int(memory * 2**30), tokens_per_second=speed,
    )  # fmt: skip


TRIALS = [ran(1, 2, 100), ran(2, 3, 180), ran(4, 4, 170), ran(8, 7.9, 260)]


def test_the_frontier_is_what_nothing_beats_in_both():
    assert [o.candidate.micro_batch for o in frontier(TRIALS)] == [1, 2, 8]


def test_a_picture_shows_every_trial_the_limit_and_the_winner():
    text = drawn(TRIALS, Scorer(capacity=8 * 2**30), TRIALS[1].candidate)
    assert text is not None
    root = ElementTree.fromstring(text)
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 4
    words = " ".join(root.itertext())
    assert "limit, 90% of 8.0 GiB" in words
    assert words.count("(chosen)") == 2
    assert "2 examples, checkpointing (chosen)" in words


def test_there_is_none_of_trials_that_did_not_run():
    failed = Observation(candidate=candidate(), outcome="oom")
    assert drawn([failed], Scorer(capacity=1), None) is None


def test_a_limit_far_away_does_not_press_the_trials_together():
    far, near = (drawn(TRIALS, Scorer(capacity=n * 2**30), None) or "" for n in (80, 30))
    assert "is far to the right" in far and "dasharray" not in far
    assert "is far to the right" not in near and "dasharray" in near


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1286.0, [0, 500, 1000]), (1.3, [0, 0.5, 1]), (24.0, [0, 5, 10, 15, 20])],
)
def test_axes_have_round_numbers(most, expected):
    assert ticks(most) == pytest.approx(expected)
