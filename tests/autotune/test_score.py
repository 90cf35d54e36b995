"""The score of the specification, and what may win."""

from __future__ import annotations

import pytest

from tests.autotune.small import CAPACITY, SCORER, failed, ran
from tuning.autotune.score import Scorer
from tuning.autotune.space import Candidate

pytestmark = pytest.mark.unit
A, B = Candidate(micro_batch=1), Candidate(micro_batch=2)


def test_speed_less_the_square_of_what_is_above_the_margin():
    scorer = Scorer(capacity=CAPACITY, alpha=2.0, beta=10.0)
    assert scorer.score(ran(A, memory=0.5, mfu=0.4)) == pytest.approx(0.8)
    assert scorer.score(ran(A, memory=0.95, mfu=0.4)) == pytest.approx(0.8 - 10 * 0.01)
    assert scorer.score(failed(A, "oom")) == float("-inf")


def test_nothing_above_the_limit_wins():
    fast, slow = ran(A, memory=0.91, mfu=0.9), ran(B, memory=0.89, mfu=0.1)
    assert SCORER.best([fast, slow]) == slow
    assert SCORER.best([fast, failed(B, "crash")]) is None


def test_beta_decides_between_speed_and_room():
    fast, roomy = ran(A, memory=0.89, mfu=0.50), ran(B, memory=0.5, mfu=0.49)
    assert SCORER.best([fast, roomy]) == fast
    assert Scorer(capacity=CAPACITY, beta=100.0).best([fast, roomy]) == roomy


def test_tokens_a_second_where_no_peak_is_known():
    fast = ran(A, memory=0.5, mfu=None, speed=2000)
    slow = ran(B, memory=0.5, mfu=None, speed=1000)
    assert SCORER.score(slow, 2000) == pytest.approx(0.5)
    assert SCORER.best([slow, fast]) == fast
