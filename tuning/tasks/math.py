"""Math word problems whose answer is a number: found in the response, compared exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from tuning.tasks.base import Grade, Task

_NUMBER = r"\$?[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
_MARKED = re.compile(rf"####\s*\**\s*({_NUMBER})\**[.%]?\**(?=\s|$)")
_BOXED = re.compile(rf"\\boxed\{{\s*({_NUMBER})\s*\}}")
_WRONG_BUT_IN_FORM = 0.1
"""The reward of a wrong answer that is where it was asked for."""


def final_answer(response: str) -> Fraction | None:
    """The number after the last `####`, or in the last \\boxed{}; None without either."""
    found = _MARKED.findall(response) or _BOXED.findall(response)
    return _fraction(found[-1]) if found else None


def reference(answer: Any) -> Fraction | None:
    """A reference answer: a number, its text, or a worked answer that ends in one; else None."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    text = str(answer)
    plain = _fraction(text.strip().rstrip("."))
    return final_answer(text) if plain is None else plain


def accepts(row: Mapping[str, Any]) -> str | None:
    """Why the answer of a row cannot be compared with; None where it can."""
    if reference(row["answer"]) is not None:
        return None
    return f"its answer is {row['answer']!r:.60}; it must be a number, or text with '#### NUMBER'"


def grade(response: str, row: Mapping[str, Any]) -> Grade:
    """Right where the final answer equals the reference exactly: 3 = 3.0 = 6/2, 1,000 = 1000.

    The part `format` is whether there is a final answer at all. Reward: 1.0 for a right answer, 0.1
    for a wrong one in the form that was asked for, else 0.
    """
    given = final_answer(response)
    right = given is not None and given == reference(row["answer"])
    reward = 1.0 if right else 0.0 if given is None else _WRONG_BUT_IN_FORM
    return Grade(right=right, reward=reward, parts={"format": given is not None})


MATH = Task(name="math", columns=("answer",), accepts=accepts, grade=grade)


def _fraction(text: str) -> Fraction | None:
    cleaned = text.replace(",", "").replace("$", "").strip()
    try:
        whole, _, part = cleaned.partition("/")
        return Fraction(whole) / Fraction(part) if part else Fraction(whole)
    except (ValueError, ZeroDivisionError):
        return None
