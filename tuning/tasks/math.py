"""Math word problems whose answer is a number: found in the response, compared exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"\$?[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
_MARKED = re.compile(rf"####\s*\**\s*({_NUMBER})\**[.%]?\**(?=\s|$)")
_BOXED = re.compile(rf"\\boxed\{{\s*({_NUMBER})\s*\}}")


def final_answer(response: str) -> Fraction | None:
    """The number behind the last `####`, or in the last \\boxed{}; None where there is neither."""
    found = _MARKED.findall(response) or _BOXED.findall(response)
    return _fraction(found[-1]) if found else None


def reference(answer: str) -> Fraction | None:
    """A reference answer: a number, or a worked answer that ends in one."""
    plain = _fraction(answer.strip().rstrip("."))
    return final_answer(answer) if plain is None else plain


def is_reference(answer: str) -> bool:
    """Whether a reference answer can be compared with."""
    return reference(answer) is not None


def is_right(response: str, answer: str) -> bool:
    """Whether the final answer equals the reference, exactly: 3 = 3.0 = 6/2, 1,000 = 1000."""
    given = final_answer(response)
    return given is not None and given == reference(answer)


def reward(response: str, answer: str) -> float:
    """1.0 for a right answer, 0.1 for a wrong one in the form that was asked for, else 0."""
    given = final_answer(response)
    if given is None:
        return 0.0
    return 1.0 if given == reference(answer) else 0.1


def _fraction(text: str) -> Fraction | None:
    cleaned = text.replace(",", "").replace("$", "").strip()
    try:
        whole, _, part = cleaned.partition("/")
        return Fraction(whole) / Fraction(part) if part else Fraction(whole)
    except (ValueError, ZeroDivisionError):
        return None
