"""Math word problems whose answer is a number: found in the response, compared exactly."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from tuning.tasks import latex, numerals
from tuning.tasks.base import Grade, Task

SYSTEM_MESSAGE = (
    "Solve the problem step by step. End with a line '#### N', where N is the answer as a number."
)
"""Asks for the form that is read."""
_MARKER = re.compile(r"(?<!#)####(?!#)|\\boxed(?![A-Za-z])")
_EMPHASIS = re.compile(r"\*\*|__|`|\\\(|\\\)|\\\$(?=\s*[-+.0-9])")
_INLINE = re.compile(r"\$((?:\\.|[^$\\])*[^$\\\s])\$(?![0-9])")
_WRONG_BUT_IN_FORM = 0.1
"""The reward of a wrong answer that is where it was asked for."""


def final_answer(response: str) -> Fraction | None:
    """The number after the marker that stands last, `####` or \\boxed{}; None if there is none."""
    markers = deque(_MARKER.finditer(response), maxlen=1)
    if not markers:
        return None
    after = response[markers[0].end() :]
    return _after_hashes(after) if markers[0][0] == "####" else _in_latex(_braced(after))


def reference(answer: Any) -> Fraction | None:
    """A reference answer: a number, its text, or a worked answer that ends in one; else None."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    if isinstance(answer, str):
        plain = numerals.whole(answer)
        return final_answer(answer) if plain is None else plain
    return Fraction(str(answer)) if math.isfinite(answer) else None


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


def _after_hashes(text: str) -> Fraction | None:
    """The number that a text begins with, on its first line that is not blank."""
    line = text.strip().partition("\n")[0].lstrip("*_` ")
    if found := _INLINE.match(line):
        return _in_latex(found[1])
    line = _EMPHASIS.sub(lambda found: found[0][1:] if "$" in found[0] else "", line).strip()
    if "\\" in line:
        return _in_latex(line.rstrip("."))
    return numerals.leading(line)


def _in_latex(text: str | None) -> Fraction | None:
    """The number that a piece of LaTeX is."""
    if text is None:
        return None
    plain = numerals.whole(latex.as_text(text))
    return latex.value(text) if plain is None else plain


def _braced(text: str) -> str | None:
    """What stands between the braces that a text begins with; None without them."""
    text, depth = text.lstrip(), 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place] if place else None
    return None
