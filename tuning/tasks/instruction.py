"""Following instructions that a program can check: IFEval (Zhou et al. 2023, arXiv:2311.07911).

The checkers are the official ones, through lm-eval. Strict: the response as it is; loose: any of
eight readings of it, without its first or last line and without asterisks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from tuning.tasks import sentences
from tuning.tasks.base import Grade, Task

LANGUAGES = (
    "ar bg bn de en es fa fi fr gu he hi it ja kn ko ml mr ne pa pl pt ru sw ta te th uk ur vi"
)
"""What an instruction may ask for, as the checkers have it."""
Check = Callable[[Any], str | None]
"""Why a value cannot be an argument; None where it can."""


def _count(value: Any) -> str | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    return None if whole and value > 0 else "must be a whole number above zero"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "must be text"


def _pattern(value: Any) -> str | None:
    """The checkers use some texts as regular expressions."""
    try:
        return _text(value) or (re.compile(value) and None)
    except re.error as error:
        return f"cannot be searched for as a regular expression ({error})"


def _patterns(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return "must be a list of texts"
    return next(filter(None, map(_pattern, value)), None)


def _relation(value: Any) -> str | None:
    return None if value in ("at least", "less than") else "must be 'at least' or 'less than'"


def _language(value: Any) -> str | None:
    known = isinstance(value, str) and value in LANGUAGES.split()
    return None if known else f"must be one of {LANGUAGES}"


ARGUMENTS: dict[str, dict[str, Check]] = {
    "keywords:existence": {"keywords": _patterns},
    "keywords:frequency": {"keyword": _pattern, "frequency": _count, "relation": _relation},
    "keywords:forbidden_words": {"forbidden_words": _patterns},
    "keywords:letter_frequency": {
        "letter": _text,
        "let_frequency": _count,
        "let_relation": _relation,
    },
    "language:response_language": {"language": _language},
    "length_constraints:number_sentences": {"num_sentences": _count, "relation": _relation},
    "length_constraints:number_paragraphs": {"num_paragraphs": _count},
    "length_constraints:number_words": {"num_words": _count, "relation": _relation},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _count,
        "nth_paragraph": _count,
        "first_word": _text,
    },
    "detectable_content:number_placeholders": {"num_placeholders": _count},
    "detectable_content:postscript": {"postscript_marker": _pattern},
    "detectable_format:number_bullet_lists": {"num_bullets": _count},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": _count},
    "detectable_format:multiple_sections": {"section_spliter": _pattern, "num_sections": _count},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _text},
    "startend:end_checker": {"end_phrase": _text},
    "change_case:capital_word_frequency": {
        "capital_frequency": _count,
        "capital_relation": _relation,
    },
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
    "startend:quotation": {},
}
"""The instructions by id, and the arguments of each, all of which it needs: a checker draws at
random what it is not given. Known here without importing the checkers.
"""

SYSTEM_MESSAGE = "Answer the request, and follow every instruction in it to the letter."


def accepts(row: Mapping[str, Any]) -> str | None:
    """Why the instructions of a row cannot be checked; None where they can."""
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not isinstance(names, list) or not names:
        return f"instruction_id_list is {names!r:.60}; it must be a list of instructions"
    if not isinstance(arguments, list) or len(arguments) != len(names):
        return f"kwargs is {arguments!r:.60}; it must have an object for each instruction"
    each = (_refusal(name, given) for name, given in zip(names, arguments, strict=True))
    return next(filter(None, each), None)


def _refusal(name: Any, given: Any) -> str | None:
    """Why one instruction cannot be checked."""
    if not isinstance(name, str) or name not in ARGUMENTS:
        return f"the instruction {name!r:.60} is none of IFEval's {len(ARGUMENTS)}"
    if not isinstance(given, dict):
        return f"kwargs of {name} is {given!r:.60}; it must be an object"
    checks = ARGUMENTS[name]
    given = {argument: value for argument, value in given.items() if value is not None}
    for argument in given:
        if argument not in checks:
            allowed = ", ".join(checks) or "none"
            return f"{name} has no argument {argument!r:.60}; its arguments: {allowed}"
    for argument, check in checks.items():
        if why := check(given.get(argument)):
            return f"{argument} of {name} is {given.get(argument)!r:.60}; it {why}"
    if given.get("nth_paragraph", 0) > given.get("num_paragraphs", math.inf):
        return f"{name} has nth_paragraph above num_paragraphs"
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
    strict = checkers.test_instruction_following_strict
    loose = checkers.test_instruction_following_loose
    asked = list(zip(row["instruction_id_list"], row["kwargs"], strict=True))
    return (
        [_follows(strict, response, name, given) for name, given in asked],
        [_follows(loose, response, name, given) for name, given in asked],
    )


def _follows(check: Callable[..., Any], response: str, name: str, given: dict[str, Any]) -> bool:
    """Whether one instruction is followed; what is nested too deeply for a checker is not."""
    arguments = {key: _plain(value) for key, value in given.items() if value is not None}
    example = _checkers().InputExample(
        key=0, instruction_id_list=[name], prompt="", kwargs=[arguments]
    )
    try:
        with _seeded():
            return bool(check(example, response).follow_all_instructions)
    except RecursionError:
        return False


def _plain(value: Any) -> Any:
    """Counts as integers: some files have them as floats."""
    return int(value) if isinstance(value, float) else value


INSTRUCTION = Task(
    name="instruction",
    columns=("instruction_id_list", "kwargs"),
    accepts=accepts,
    grade=grade,
    is_ready=sentences.are_here,
    fetch=sentences.fetch,
)


@cache
def _checkers() -> ModuleType:
    """The official checkers; imported with all that they look for in place."""
    sentences.require()
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    # It prints whole responses whose language it cannot tell.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
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
