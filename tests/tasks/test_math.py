"""Answers: found where they stand, compared exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tuning.tasks import math
from tuning.tasks.base import Grade

pytestmark = pytest.mark.unit


def grade(response: str, answer: object) -> Grade:
    return math.grade(response, {"prompt": "?", "answer": answer})


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 5", 5),
        ("####5", 5),
        ("####   5  ", 5),
        ("2 + 3 = 5\n#### 5", 5),
        ("2 + 3 = 5\n#### 5\n", 5),
        ("#### 5\n\nQuestion: next?", 5),
        ("#### 5 apples", 5),
        ("#### 5, I think", 5),
        ("so #### 5", 5),
        ("#### 4\nno, wait\n#### 5", 5),
        ("#### 4 #### 5", 5),
        ("#### -5", -5),
        ("#### +5", 5),
        ("#### 0", 0),
        ("#### 007", 7),
        ("#### 1,000", 1000),
        ("#### 1,234,567.5", Fraction("1234567.5")),
        ("#### $18", 18),
        ("#### -$1,200.50", Fraction("-1200.5")),
        ("#### 3.14", Fraction(314, 100)),
        ("#### 0.1", Fraction(1, 10)),
        ("#### 5.0", 5),
        ("#### 3/4", Fraction(3, 4)),
        ("#### -6/8", Fraction(-3, 4)),
        ("#### 123456789012345678901234567890", 123456789012345678901234567890),
        (r"\boxed{5}", 5),
        (r"The answer is $\boxed{ -1,000 }$.", -1000),
        (r"\boxed{4} or rather \boxed{5}", 5),
        (r"\boxed{3/4}", Fraction(3, 4)),
        (r"\boxed{4} #### 5", 5),
        (r"#### 5 \boxed{4}", 5),
    ],
)
def test_the_final_answer_is_found(response, answer):
    assert math.final_answer(response) == answer
    right = Grade(right=True, reward=1.0, parts={"format": True})
    assert grade(response, str(Fraction(answer))) == right


@pytest.mark.parametrize(
    "response",
    [
        "",
        "5",
        "The answer is 5",
        "## 5",
        "####",
        "#### five",
        "#### apples: 5",
        "#### 5apples",
        "#### 12abc",
        "#### x = 5",
        "#### 5/0",
        "#### 1/2/3",
        r"\boxed{}",
        r"\boxed{x}",
        r"\boxed{5 apples}",
        r"\boxed 5",
        "#### " + "9" * 10_000,
    ],
)
def test_where_no_number_is_marked_there_is_none(response):
    assert math.final_answer(response) is None
    assert grade(response, "5") == Grade(right=False, reward=0.0, parts={"format": False})


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("#### 3", "3.0", True),
        ("#### 6/2", "3", True),
        ("#### 1000", "1,000", True),
        ("#### 1,000", "$1000", True),
        ("#### 0.5", "1/2", True),
        ("#### 0.3333333333333333", "1/3", False),
        ("#### 0.30000000000000004", "0.3", False),
        ("#### 9007199254740993", "9007199254740992", False),
        ("#### -5", "5", False),
        ("#### 50", "5", False),
        ("#### 5", "5 ", True),
        ("#### 5", "five", False),
    ],
)
def test_answers_are_compared_exactly(response, answer, right):
    reward = 1.0 if right else 0.1
    assert grade(response, answer) == Grade(right=right, reward=reward, parts={"format": True})


@pytest.mark.parametrize("answer", [12, 12.0, "12", " 12. ", "so 5 + 7 = 12\n#### 12"], ids=repr)
def test_an_answer_is_a_number_its_text_or_a_worked_answer(answer):
    assert math.accepts({"answer": answer}) is None
    assert grade("#### 12", answer).right
    assert not grade("#### 13", answer).right


@pytest.mark.parametrize("answer", ["five", "", True, None, [12], {"value": 12}], ids=repr)
def test_an_answer_that_cannot_be_compared_with_is_refused_with_its_value(answer):
    why = math.accepts({"answer": answer})
    assert why == f"its answer is {answer!r}; it must be a number, or text with '#### NUMBER'"
    assert not grade("#### 12", answer).right


def test_a_decimal_is_the_decimal_that_is_written():
    assert grade("#### 1/10", 0.1).right
    assert grade("#### 0.1", 0.1).right
