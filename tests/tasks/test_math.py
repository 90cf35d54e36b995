"""Answers: found where they stand, compared exactly."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

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
        ("#### 5 and a bit of luck", 5),
        ("#### 5 : that is all", 5),
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
        (r"#### 5 \boxed{4}", 4),
        # the sign
        ("#### \u22125", -5),
        ("#### \u20135", -5),
        ("#### - 5", -5),
        ("#### $-5", -5),
        # currency, units, per cent
        ("#### \u20ac5", 5),
        ("#### \u00a3 3.50", Fraction(7, 2)),
        ("#### 5\u20ac", 5),
        ("#### US$5", 5),
        ("#### USD 5", 5),
        (r"#### \$5 per day", 5),
        ("#### 5%", 5),
        ("#### 12.5 %", Fraction(25, 2)),
        ("#### 5 percent", 5),
        ("#### 5\u00a0km", 5),
        ("#### 5 million", 5_000_000),
        # decimals, powers of ten, fractions, mixed numbers
        ("#### .5", Fraction(1, 2)),
        ("#### -.25", Fraction(-1, 4)),
        ("#### 5.", 5),
        ("#### 1.5e3", 1500),
        ("#### 3 / 4 of it", Fraction(3, 4)),
        ("#### 3 1/2", Fraction(7, 2)),
        ("#### -3 1/2", Fraction(-7, 2)),
        ("#### 1,003 and 1/2", Fraction(2007, 2)),
        ("#### \u00be", Fraction(3, 4)),
        ("#### 3\u00bd", Fraction(7, 2)),
        ("#### 2 \u2153", Fraction(7, 3)),
        # text behind, and marks around
        ("#### 5 - that is all", 5),
        ("#### 5 (10 less 5)", 5),
        ("#### 5\n6 more lines", 5),
        ("#### **5**", 5),
        ("**#### 5**", 5),
        ("#### `5`", 5),
        # LaTeX
        (r"#### $5$", 5),
        (r"#### \(5\)", 5),
        (r"#### $\$5$", 5),
        (r"#### $\frac{3}{4}$", Fraction(3, 4)),
        (r"#### \dfrac{3}{4}", Fraction(3, 4)),
        (r"#### $2\tfrac12$", Fraction(5, 2)),
        (r"#### \boxed{5}", 5),
        (r"\boxed{\$5}", 5),
        (r"\boxed{5\%}", 5),
        (r"\boxed{5\text{ apples}}", 5),
        (r"\boxed{5\,\mathrm{cm}}", 5),
        (r"\boxed{\text{5}}", 5),
        (r"\boxed{1{,}234}", 1234),
        (r"\boxed{1\,234.5}", Fraction("1234.5")),
        (r"\boxed{-\frac{3}{4}}", Fraction(-3, 4)),
        (r"\boxed{\frac{-3}{4}}", Fraction(-3, 4)),
        (r"\boxed{3\frac{1}{2}}", Fraction(7, 2)),
        (r"\boxed{45^\circ}", 45),
        (r"\boxed{x = 5}", 5),
        (r"\boxed{\sqrt{16}}", 4),
        (r"\boxed{3 \times 10^4}", 30_000),
        (r"\boxed{\left(2+3\right)\cdot 4}", 20),
        (r"\boxed{\frac{1}{2} + 0.1}", Fraction(3, 5)),
        (r"\boxed{2^{-1}}", Fraction(1, 2)),
        (r"\boxed{2(3)}", 6),
        (r"\boxed{3\left(\frac12\right)}", Fraction(3, 2)),
        (r"\boxed{\frac{5(3)}{2}}", Fraction(15, 2)),
        (r"\boxed{25\text{ cm}^2}", 25),
        (r"\boxed{5\,\mathrm{m^2}}", 5),
        (r"\boxed{1.5\text{ million}}", 1_500_000),
        (r"\boxed{2~1/2}", Fraction(5, 2)),
        (r"\boxed{1.1^{3}}", Fraction(1331, 1000)),
        (r"\boxed{\frac{\sqrt{12}}{\sqrt{3}}}", 2),
        (r"\boxed{\sqrt{2}\cdot\sqrt{8}}", 4),
        (r"\boxed{\sqrt[3]{27}}", 3),
        ("#### $$5$$", 5),
        (r"#### \[5\]", 5),
        (r"#### 5\% of it", 5),
        ("#### = 5", 5),
        ('#### "5"', 5),
        ("#### 5 Millions", 5_000_000),
        ("#### 20 in 4 days", 20),
        # several markers
        ("#### 1. Find the cost\n2 + 3\n\\boxed{5}", 5),
        ("\\boxed{4}\nno:\n#### 5\n", 5),
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
        "#### 2 and a half hours",
        "#### 2 and three quarters",
        "#### 3 : 4",
        "#### 3 , 4",
        "#### 12abc",
        "#### x = 5",
        "#### 5/0",
        "#### 1/2/3",
        r"\boxed{}",
        r"\boxed{x}",
        r"\boxed{5 apples}",
        r"\boxed 5",
        "#### " + "9" * 10_000,
        # a decimal comma, groups that are none of three, blanks within
        "#### 3,4",
        "#### 1,00",
        "#### 1234,567",
        "#### 1,234,56",
        "#### 1.234,5",
        "#### 1.234.567",
        "#### 1 234",
        "#### 1\u202f234",
        "#### 1'234",
        # what goes on: a list, a range, a sum, a time
        "#### 5, 6",
        "#### 5 or 6",
        "#### 5-6",
        "#### 5\u20136",
        "#### 5 + 6",
        "#### 5 * 6 = 30",
        "#### 10:30",
        "#### 5 6",
        "#### 1e5000",
        "#### 12 3/0",
        "#### --5",
        "#### 0,750 kg",
        "#### 5\u00b2",
        "#### 1\uff12",
        "#### 1\u2019000",
        "#### 3\u00b75",
        "#### 1\u20442",
        "#### 5 \u22c5 3",
        "#### 5 \u00b1 1",
        "#### 5..6",
        "#### 2\u03c0",
        "#### 2 * sqrt(3)",
        "#### 1.5 x 10^3",
        "#### 5\u200b6",
        "#### 5\u4e07",
        "#### 5 hundred",
        "#### $5 M",
        "#### 5 ft 6 in",
        "#### 5 hours and 30 minutes",
        "#### 5\u00b030'",
        "#### 20% of 50 = 10",
        "#### 5! = 120",
        "#### 1. 5",
        "#### $5$ or $6$",
        "#### $5$-$6$",
        "#### $x = 5$, $y = 6$",
        "#### 5**2",
        r"\boxed{5\text{ or }\frac12}",
        r"\boxed{\text{not }5}",
        r"\boxed{12\:30}",
        r"\boxed{5\,6}",
        r"\boxed{\frac{1}{2}3}",
        r"\boxed{3\frac12\frac13}",
        r"\boxed{1.5\frac12}",
        r"\boxed{6/2(1+2)}",
        r"\boxed{2{3}}",
        r"\boxed{5--6}",
        r"\boxed{2024-05-06}",
        r"\boxed{10-20}",
        r"\boxed{\sqrt{0.5}}",
        # the last marker counts, also where nothing can be read behind it
        "#### 5\n#### Explanation",
        r"#### 5 \boxed{}",
        r"\boxed{5} ####",
        "##### 5",
        r"\boxed{5",
        r"\boxed{1,5}",
        r"\boxed{1.5.2}",
        r"\boxed{5 6}",
        r"\boxed{\sqrt{2}}",
        r"\boxed{\frac{1}{0}}",
        r"\boxed{\infty}",
        r"\boxed{\pi}",
        r"\boxed{5!}",
        r"\fbox{5}",
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


@pytest.mark.parametrize(
    "answer",
    [12, 12.0, "12", " 12. ", "so 5 + 7 = 12\n#### 12", r"$\frac{24}{2}$", "**12**"],
    ids=repr,
)
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


@pytest.mark.parametrize(
    "answer",
    [
        "1e999999999",
        "0,500",
        "3,4",
        "1 234",
        "18 apples",
        "5 or 6",
        "10" * 5000,
        float("nan"),
        float("inf"),
    ],
    ids=lambda answer: str(answer)[:12],
)
def test_a_reference_that_no_answer_can_equal_is_refused(answer):
    assert math.accepts({"answer": answer})


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{((9^{99})^{99})^{99}}",
        r"\boxed{" + "{" * 50_000,
        r"\boxed{" + "(" * 50 + "1" + ")" * 50 + "}",
        r"\boxed{" * 20_000,
        r"\boxed{\frac{1" * 2_000,
        r"\boxed{\sum_{i=1}^{10^9} i}",
        r"\boxed{\sqrt[1/99999999]{9}}",
        r"\boxed{(\sqrt[3]{\sqrt[7]{(99999999977)}\times 7/99999999977}+7-1)^{99}}",
        "#### -" + " " * 200_000 + "x",
        r"\boxed{99999999!!!!}",
        "#### 5" + " " * 100_000 + "x",
        "#### " + "5 " * 50_000,
        "#### $" + "1 + " * 20_000,
        "####" * 50_000,
        "#### " + "1," * 50_000,
    ],
    ids=lambda response: response[:24],
)
def test_no_answer_keeps_the_checker_busy(response):
    grade(response, "5")


PUBLISHED = Path(__file__).parent / "gsm8k_labelled.jsonl"
"""Model solutions of GSM8K with the publisher's own verdicts: OpenAI, grade-school-math, MIT."""


def test_verdicts_are_those_of_the_publisher():
    lines = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    assert {line["is_correct"] for line in lines} == {True, False}
    for line in lines:
        answer = line["ground_truth"].replace("\nA: ", "\n#### ")
        solution = line["solution"].replace("\nA: ", "\n#### ")
        assert grade(solution, answer).right == line["is_correct"], solution


def test_any_text_gives_a_grade():
    draw = random.Random(0)
    signs = [
        *"0123456789.,-+*/ ^(){}[]$\\%#\n\u00bd\u00b2xX",
        "\\frac",
        "\\sqrt",
        "\\boxed{",
        "#### ",
    ]
    signs += ["\\text{", "\\times", "\\left(", " million", " and ", "\u20ac", "\u00b0"]
    for _ in range(5_000):
        start = draw.choice(["#### ", "\\boxed{", ""])
        text = start + "".join(draw.choice(signs) for _ in range(draw.randint(1, 40)))
        assert math.grade(text, {"answer": 5}).parts.keys() == {"format"}
        math.accepts({"answer": text})


def test_a_reference_may_be_a_large_number():
    assert math.accepts({"answer": 10**400}) is None
