"""The synthetic dataset `ifsynth`: small requests with instructions of IFEval, for its checkers.

With it the task `instruction` runs end to end on a CPU and without a network. The words are those
of arith, so the embedded model, which was pre-trained on its text, learns a part of it. Everything
is a pure function of a seed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuning.data.arith import NAMES, THINGS
from tuning.data.generated import SIZES, Generated
from tuning.data.rows import ANSWERS

if TYPE_CHECKING:
    from tuning.config import DatasetEntry

VERSION = "1"
"""Increased with every change that affects a row."""
COLUMNS = {pool: ("prompt", *ANSWERS[pool], "instruction_id_list", "kwargs") for pool in SIZES}
_MOST = 10
_WORDS = {
    "friend": "A friend counts them.",
    "box": "They are in a box.",
    "morning": "It is in the morning.",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be said: that somebody has two kinds of things."""

    name: str
    first: str
    second: str

    def body(self, instructions: Sequence[Instruction]) -> str:
        """The answer, as far as its sentences are concerned."""
        asked = {one.id: one for one in instructions}
        has = "There are" if "keywords:forbidden_words" in asked else f"{self.name} has"
        highlights = "detectable_format:number_highlighted_sections" in asked
        first = f"*{self.first}*" if highlights else self.first
        comma = "" if "punctuation:no_comma" in asked else ","
        if "detectable_format:number_bullet_lists" in asked:
            return f"* {has} {first}{comma} and more.\n* There are {self.second}."
        return f"{has} {first}{comma} and {self.second}."


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """An instruction of IFEval: how it is asked for, and what following it adds to an answer."""

    id: str
    asks: str
    kwargs: dict[str, Any]
    add: Callable[[str], str] = str
    """Applied to the body, in the order of _kinds()."""


def _kinds(rng: random.Random, request: Request) -> list[Instruction]:
    """One instruction of each kind, in the order in which they shape an answer."""
    word = rng.choice(list(_WORDS))
    thing = request.second.split()[1]
    return [
        Instruction(id="punctuation:no_comma", asks="Use no comma.", kwargs={}),
        Instruction(
            id="keywords:forbidden_words",
            asks="Do not use the word has.",
            kwargs={"forbidden_words": ["has"]},
        ),
        Instruction(
            id="detectable_format:number_highlighted_sections",
            asks="Highlight a part like *this*.",
            kwargs={"num_highlights": 1},
        ),
        Instruction(
            id="detectable_format:number_bullet_lists",
            asks="Write exactly 2 lines that begin with * and a blank.",
            kwargs={"num_bullets": 2},
        ),
        Instruction(
            id="keywords:existence",
            asks=f"Use the word {word}.",
            kwargs={"keywords": [word]},
            add=lambda text: f"{text}\n{_WORDS[word]}",
        ),
        Instruction(
            id="detectable_format:title",
            asks="Begin with a title like <<title>>.",
            kwargs={},
            add=lambda text: f"<<{thing}>>\n{text}",
        ),
        Instruction(
            id="detectable_content:postscript",
            asks="Add a postscript after P.S.",
            kwargs={"postscript_marker": "P.S."},
            add=lambda text: f"{text}\nP.S. Count the {thing}.",
        ),
        Instruction(
            id="startend:end_checker",
            asks="End with: There are no more.",
            kwargs={"end_phrase": "There are no more."},
            add=lambda text: f"{text}\nThere are no more.",
        ),
        Instruction(
            id="startend:quotation",
            asks="Put it all in quotes.",
            kwargs={},
            add=lambda text: f'"\n{text}"',
        ),
    ]


def opened(entry: DatasetEntry) -> Generated:
    """The dataset as a Loader."""
    return Generated(entry, version=VERSION, columns=COLUMNS, make=pools)


@functools.cache
def pools(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The four pools, with no prompt in common, each in one seeded order (a subset is a prefix).

    A chosen answer follows all instructions, a rejected one all but one of them. They are made once
    a process: not to be changed.
    """
    rng = random.Random(f"ifsynth {VERSION} pools {seed}")
    requests = _distinct(rng)
    return {
        pool: [_row(pool, *next(requests), rng) for _ in range(size)]
        for pool, size in SIZES.items()
    }


def _distinct(rng: random.Random) -> Iterator[tuple[Request, list[Instruction]]]:
    """Requests with one to three instructions, none of them twice."""
    seen: set[str] = set()
    while True:
        things = rng.sample(THINGS, 2)
        first, second = (f"{rng.randint(2, _MOST)} {thing}" for thing in things)
        request = Request(name=rng.choice(NAMES)[0], first=first, second=second)
        kinds = _kinds(rng, request)
        chosen = sorted(rng.sample(range(len(kinds)), rng.choice((1, 1, 2, 2, 3))))
        instructions = [kinds[number] for number in chosen]
        if (text := _asked(request, instructions)) not in seen:
            seen.add(text)
            yield request, instructions


def _asked(request: Request, instructions: Sequence[Instruction]) -> str:
    asks = " ".join(one.asks for one in instructions)
    return f"{request.name} has {request.first} and {request.second}. Say so. {asks}"


def _answer(request: Request, instructions: Sequence[Instruction]) -> str:
    """An answer that follows these instructions, and no other one but by chance."""
    text = request.body(instructions)
    for one in instructions:
        text = one.add(text)
    return text


def _row(
    pool: str, request: Request, instructions: list[Instruction], rng: random.Random
) -> dict[str, Any]:
    answer = _answer(request, instructions)
    left = rng.randrange(len(instructions))
    without = _answer(request, instructions[:left] + instructions[left + 1 :])
    texts = {"completion": answer, "chosen": answer, "rejected": without}
    return {
        "prompt": [{"role": "user", "content": _asked(request, instructions)}],
        **{column: [{"role": "assistant", "content": texts[column]}] for column in ANSWERS[pool]},
        "instruction_id_list": [one.id for one in instructions],
        "kwargs": [one.kwargs for one in instructions],
    }
