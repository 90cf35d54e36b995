"""Following instructions that a program can check: IFEval (Zhou et al. 2023, arXiv:2311.07911).

The checkers are the official ones, through lm-eval. Strict: the response as it is; loose: any of
eight readings of it, without its first or last line and without asterisks.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from tuning.tasks import sentences
from tuning.tasks.base import Grade, Task

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "keywords:existence": ("keywords",),
    "keywords:frequency": ("keyword", "frequency", "relation"),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:letter_frequency": ("letter", "let_frequency", "let_relation"),
    "language:response_language": ("language",),
    "length_constraints:number_sentences": ("num_sentences", "relation"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:number_words": ("num_words", "relation"),
    "length_constraints:nth_paragraph_first_word": (
        "num_paragraphs",
        "nth_paragraph",
        "first_word",
    ),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:constrained_response": (),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "detectable_format:json_format": (),
    "detectable_format:title": (),
    "combination:two_responses": (),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "startend:end_checker": ("end_phrase",),
    "change_case:capital_word_frequency": ("capital_frequency", "capital_relation"),
    "change_case:english_capital": (),
    "change_case:english_lowercase": (),
    "punctuation:no_comma": (),
    "startend:quotation": (),
}
"""The instructions by id, and the arguments of each; known here without importing the checkers."""

SYSTEM_MESSAGE = "Answer the request, and follow every instruction in it to the letter."


def accepts(row: Mapping[str, Any]) -> str | None:
    """Why the instructions of a row cannot be checked; None where they can."""
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not isinstance(names, list) or not names:
        return f"instruction_id_list is {names!r:.60}; it must be a list of instructions"
    if not isinstance(arguments, list) or len(arguments) != len(names):
        return f"kwargs is {arguments!r:.60}; it must have an object for each instruction"
    for name, given in zip(names, arguments, strict=True):
        if not isinstance(name, str) or name not in ARGUMENTS:
            return f"the instruction {name!r:.60} is none of IFEval's {len(ARGUMENTS)}"
        if not isinstance(given, dict):
            return f"kwargs of {name} is {given!r:.60}; it must be an object"
        odd = [key for key, value in given.items() if value and key not in ARGUMENTS[name]]
        if odd:
            return f"{name} has no argument {odd[0]!r:.60}; its arguments are {ARGUMENTS[name]}"
    return None


def grade(response: str, row: Mapping[str, Any]) -> Grade:
    """Right where every instruction is followed, strictly; the reward is the share that is.

    Parts: `prompt_loose`, every instruction followed loosely, and `instruction_strict` and
    `instruction_loose`, one value an instruction.
    """
    strict, loose = followed(response, row)
    return Grade(
        right=all(strict),
        reward=sum(strict) / len(strict),
        parts={
            "prompt_loose": all(loose),
            "instruction_strict": strict,
            "instruction_loose": loose,
        },
    )


def followed(response: str, row: Mapping[str, Any]) -> tuple[list[bool], list[bool]]:
    """Whether each instruction is followed, strictly and loosely.

    The same for the same response: what the checkers draw at random is seeded.
    """
    checkers = _checkers()
    example = checkers.InputExample(
        key=0,
        instruction_id_list=row["instruction_id_list"],
        prompt=_text(row.get("prompt", "")),
        kwargs=row["kwargs"],
    )
    with _seeded():
        strict = checkers.test_instruction_following_strict(example, response)
    with _seeded():
        loose = checkers.test_instruction_following_loose(example, response)
    return list(strict.follow_instruction_list), list(loose.follow_instruction_list)


INSTRUCTION = Task(
    name="instruction",
    columns=("instruction_id_list", "kwargs"),
    accepts=accepts,
    grade=grade,
)


def _text(prompt: Any) -> str:
    """The request itself: of a conversation, what the user said last."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


@cache
def _checkers() -> ModuleType:
    """The official checkers; imported with all that they look for in place."""
    sentences.require()
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    return utils


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Python's random numbers from a fixed seed; afterwards they go on as before."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
