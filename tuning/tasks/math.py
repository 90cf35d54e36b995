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
_BEFORE = re.compile(r"[\s*_`\"'\u201c:=]*")
"""What may stand between the hashes and the number."""
_INLINE = re.compile(
    r"\$\$(?P<double>[^$]+)\$\$|\$(?P<single>(?:\\.|[^$\\])*[^$\\\s])\$(?![0-9])"
    r"|\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\]"
)
_EMPHASIS = re.compile(r"(?<![0-9])\*\*|\*\*(?![0-9])|__|`")
_WRONG_BUT_IN_FORM = 0.1
"""The reward of a wrong answer that is where it was asked for."""


def final_answer(response: str) -> Fraction | None:
    """The number after the marker that stands last, `####` or \\boxed{}; None if there is none."""
    markers = deque(_MARKER.finditer(response), maxlen=1)
    if not markers:
        return None
    after = response[markers[0].end() :]
    return _after_hashes(after) if markers[0][0] == "####" else _boxed(after)


def reference(answer: Any) -> Fraction | None:
    """A reference answer: a number, its text, or a worked answer that ends in one; else None."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    if isinstance(answer, int):
        return Fraction(answer)
    if isinstance(answer, float):
        return Fraction(str(answer)) if math.isfinite(answer) else None
    if _MARKER.search(answer):
        return final_answer(answer)
    bare = _EMPHASIS.sub(" ", answer).strip()
    found = _INLINE.fullmatch(bare)
    return latex.value(found[found.lastgroup or 0] if found else bare)


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
    line = text.strip().partition("\n")[0]
    line = line[_BEFORE.match(line).end() :]  # type: ignore[union-attr]
    if found := _INLINE.match(line):
        rest = _EMPHASIS.sub(" ", line[found.end() :].replace("$", ""))
        return latex.value(found[found.lastgroup or 0]) if numerals.stands_alone(rest) else None
    line = _EMPHASIS.sub(" ", re.sub(r"\\([$%])", r"\1", line)).strip()
    return latex.value(line.rstrip(".")) if "\\" in line else numerals.leading(line)


def _boxed(text: str) -> Fraction | None:
    """The number between the braces that a text begins with; None without them."""
    text, depth = text.lstrip(), 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return latex.value(text[1:place]) if place else None
    return None
