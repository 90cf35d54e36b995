"""The synthetic dataset `arith`: two-step word problems with + and -, and text to pre-train on.

With it every pipeline runs end to end, from pre-training to preference tuning, in minutes on a CPU
and without a network. Everything is a pure function of a seed; nothing is downloaded or cached.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuning.data.generated import SIZES, Generated

if TYPE_CHECKING:
    from tuning.config import DatasetEntry

VERSION = "1"
"""Increased with every change that affects a row or a document."""

COLUMNS = {
    "sft": ("prompt", "completion", "answer"),
    "preference": ("prompt", "chosen", "rejected", "answer"),
    "validation": ("prompt", "completion", "answer"),
    "test": ("prompt", "answer"),
}

MAX_NUMBER = 10
MAX_RESULT = 20

NAMES = (
    ("Anna", "She"),
    ("Ben", "He"),
    ("Dora", "She"),
    ("Eli", "He"),
    ("Emma", "She"),
    ("Finn", "He"),
    ("Ida", "She"),
    ("Jack", "He"),
    ("Lena", "She"),
    ("Max", "He"),
    ("Nina", "She"),
    ("Tom", "He"),
)
THINGS = (
    "apples",
    "balls",
    "books",
    "cards",
    "coins",
    "cups",
    "eggs",
    "keys",
    "pens",
    "shells",
    "stones",
    "toys",
)
_STARTS = (
    "{name} has {a} {things}.",
    "{name} starts the day with {a} {things}.",
    "In the morning {name} counts {a} {things}.",
    "There are {a} {things} in the box of {name}.",
)
_EVENTS = {
    "+": (
        "{who} buys {n} more.",
        "{who} finds {n} more.",
        "{who} gets {n} from a friend.",
        "A friend brings {n} more.",
    ),
    "-": (
        "{who} gives away {n}.",
        "{who} loses {n}.",
        "{who} sells {n}.",
        "A friend takes {n}.",
    ),
}
_LINKS = ("", "Then ", "After that ", "Later ")
_ASKS = (
    "How many {things} does {name} have now?",
    "How many {things} does {name} have in the end?",
    "How many {things} are there now?",
)
_OPENINGS = (
    "We start with {a}.",
    "{name} starts with {a}.",
    "At first there are {a}.",
    "First count the {things}.",
    "There are {a} {things}.",
    "{name} has {a} at first.",
    "Start with {a} {things}.",
    "Count the {things} of {name}.",
)
_STEP_WORDS = (
    ("First", "At first", "Now", "So"),
    ("Then", "Next", "After that", "And then"),
)
_LAYOUTS = {
    "Question: {question}\nAnswer: {first}, {second}\n#### {answer}": 11,
    "Q: {question}\nA: {first} and {second}\n#### {answer}": 11,
    "Problem: {question}\nSolution:\n{first}\n{second}\n#### {answer}": 11,
    "Problem: {question}\nSolution:\n{worked}": 1,
}
"""Layouts of solved problems in the pre-training text, with their weights.

The last one, that of the pools, is rare: the model knows its words, but SFT has yet to teach it.
"""


@dataclass(frozen=True)
class Step:
    """One line of a worked answer: `left op right = result`, where the result may be a mistake."""

    left: int
    op: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """A question, its correct steps, and the words for writing the steps out."""

    name: str
    things: str
    question: str
    steps: tuple[Step, Step]

    @property
    def answer(self) -> str:
        """The correct final number."""
        return str(self.steps[-1].result)


@functools.cache
def pools(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The four pools, with no question in common, each in one seeded order (a subset is a prefix).

    Rows of "sft" and "validation" hold prompt, completion and answer; of "preference" prompt,
    chosen, rejected and answer; of "test" prompt and answer. Messages are conversational (role,
    content); the answer is the final number as text. They are made once a process: not to be
    changed.
    """
    rng = random.Random(f"arith {VERSION} pools {seed}")
    problems = _distinct_problems(rng)
    rows = {
        "sft": _sft_row,
        "preference": _preference_row,
        "validation": _sft_row,
        "test": _test_row,
    }
    return {
        pool: [rows[pool](next(problems), rng) for _ in range(size)] for pool, size in SIZES.items()
    }


def opened(entry: DatasetEntry) -> Generated:
    """The dataset as a Loader."""
    return Generated(entry, version=VERSION, columns=COLUMNS, make=pools)


def pretraining_documents(seed: int = 0) -> Iterator[str]:
    """An endless stream of plain text: sums, counting, and word problems in layouts of its own.

    No problem of any pool occurs in it, not even in other words (see `_is_for_pretraining`).
    """
    rng = random.Random(f"arith {VERSION} documents {seed}")
    makers = (_sums, _counting, _story, _solved_problem)
    while True:
        (maker,) = rng.choices(makers, weights=(32, 2, 1, 28))
        yield maker(rng)


def _is_for_pretraining(first: Step, second: Step) -> bool:
    """Whether a triple of numbers is reserved for pre-training; half are, whatever the words."""
    return zlib.crc32(bytes((first.left, first.right, second.right))) % 2 == 0


def _apply(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right


@functools.cache
def _numbers(*, pretraining: bool) -> tuple[tuple[Step, Step], ...]:
    """Every pair of correct steps whose results stay within 0 and MAX_RESULT."""
    operations = tuple(itertools.product("+-", range(1, MAX_NUMBER + 1)))
    starts = range(2, MAX_NUMBER + 1)
    pairs = []
    for start, (op1, number1), (op2, number2) in itertools.product(starts, operations, operations):
        first = _step(start, op1, number1)
        second = _step(first.result, op2, number2)
        possible = all(0 <= step.result <= MAX_RESULT for step in (first, second))
        if possible and _is_for_pretraining(first, second) == pretraining:
            pairs.append((first, second))
    return tuple(pairs)


def _problem(rng: random.Random, *, pretraining: bool = False) -> Problem:
    name, pronoun = rng.choice(NAMES)
    things = rng.choice(THINGS)
    first, second = rng.choice(_numbers(pretraining=pretraining))
    sentences = [rng.choice(_STARTS).format(name=name, things=things, a=first.left)]
    for step, link in ((first, ""), (second, rng.choice(_LINKS))):
        event = rng.choice(_EVENTS[step.op])
        if link:
            event = event[0].lower() + event[1:]
        who = pronoun.lower() if link else pronoun
        sentences.append(link + event.format(who=who, n=step.right))
    sentences.append(rng.choice(_ASKS).format(name=name, things=things))
    return Problem(name, things, " ".join(sentences), (first, second))


def _distinct_problems(rng: random.Random) -> Iterator[Problem]:
    seen: set[str] = set()
    while True:
        problem = _problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _worked(problem: Problem, steps: tuple[Step, ...], rng: random.Random) -> str:
    """`steps` written out under an opening line, ending with the line `#### N`."""
    opening = rng.choice(_OPENINGS)
    lines = [opening.format(name=problem.name, things=problem.things, a=problem.steps[0].left)]
    for words, step in zip(_STEP_WORDS, steps, strict=False):
        lines.append(f"{rng.choice(words)}, {step}.")
    lines.append(f"#### {steps[-1].result}")
    return "\n".join(lines)


@functools.cache
def _mistakes(right: tuple[Step, Step]) -> list[tuple[Step, ...]]:
    """The steps of every plausible mistake that ends in a wrong number."""
    first, second = right
    return [
        steps
        for steps in (
            *_wrong_operation(first, second),
            *_off_by_one(first, second),
            (first,),
            (_step(first.left, second.op, second.right),),
        )
        if steps[-1].result != second.result and all(step.result >= 0 for step in steps)
    ]


def _wrong_operation(first: Step, second: Step) -> Iterator[tuple[Step, ...]]:
    other = {"+": "-", "-": "+"}
    wrong = _step(first.left, other[first.op], first.right)
    yield wrong, _step(wrong.result, second.op, second.right)
    yield first, _step(second.left, other[second.op], second.right)


def _off_by_one(first: Step, second: Step) -> Iterator[tuple[Step, ...]]:
    for error in (-1, 1):
        wrong = Step(first.left, first.op, first.right, first.result + error)
        yield wrong, _step(wrong.result, second.op, second.right)
        yield first, Step(second.left, second.op, second.right, second.result + error)


def _step(left: int, op: str, right: int) -> Step:
    return Step(left, op, right, _apply(left, op, right))


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _sft_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    return {
        "prompt": _message("user", problem.question),
        "completion": _message("assistant", _worked(problem, problem.steps, rng)),
        "answer": problem.answer,
    }


def _preference_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    mistake = rng.choice(_mistakes(problem.steps))
    return {
        "prompt": _message("user", problem.question),
        "chosen": _message("assistant", _worked(problem, problem.steps, rng)),
        "rejected": _message("assistant", _worked(problem, mistake, rng)),
        "answer": problem.answer,
    }


def _test_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    return {"prompt": _message("user", problem.question), "answer": problem.answer}


def _sums(rng: random.Random) -> str:
    """Lines of single steps, plain or with the words that lead a step of a worked answer."""
    words = rng.choice((("",), *_STEP_WORDS))
    lines = []
    for _ in range(rng.randint(3, 6)):
        step = rng.choice(rng.choice(_numbers(pretraining=True)))
        lines.append(f"{rng.choice(words)}, {step}." if words[0] else str(step))
    return "\n".join(lines)


def _counting(rng: random.Random) -> str:
    start = rng.randint(0, MAX_RESULT - 3)
    numbers = list(range(start, min(start + rng.randint(4, 10), MAX_RESULT + 1)))
    if rng.random() < 0.5:
        return "Counting up: " + ", ".join(map(str, numbers)) + "."
    return "Counting down: " + ", ".join(map(str, reversed(numbers))) + "."


def _story(rng: random.Random) -> str:
    problem = _problem(rng, pretraining=True)
    story = problem.question.rpartition(". ")[0]
    return f"{story}. Now there are {problem.answer} {problem.things}."


def _solved_problem(rng: random.Random) -> str:
    problem = _problem(rng, pretraining=True)
    (layout,) = rng.choices(tuple(_LAYOUTS), weights=tuple(_LAYOUTS.values()))
    return layout.format(
        question=problem.question,
        first=problem.steps[0],
        second=problem.steps[1],
        answer=problem.answer,
        worked=_worked(problem, problem.steps, rng),
    )
