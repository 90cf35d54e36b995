"""How published rows become rows of pools: a recipe a dataset.

A recipe reads one raw row of a source (`sft`, `preference`, `validation`, `test`) and gives rows of
ours, or says why it cannot be used. What is done with them all, such as splitting by prompt, is
preparation.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tuning.data.rows import LABEL, checked_row
from tuning.tasks import instruction, math

Row = dict[str, Any]
_MOST_WORDS = 1024
"""Words of a row of TuluIF, as in the study that published the split."""
_ANNOTATION = re.compile(r"<<[^<>]*>>")
"""Calculations in GSM8K's solutions, for a calculator that nobody has."""
_LAST_LINE = re.compile(r"(?:\n|^)A: *([^\n]+)\s*$")
"""How OpenAI's labelled solutions end."""


class Unusable(Exception):
    """Why a raw row is left out, in a few words that are counted."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where the rows of a dataset come from, and what becomes of them."""

    sources: Mapping[str, str]
    """The source of each kind; see raw.py."""
    rows: Callable[[str, Mapping[str, Any]], Iterable[Row]]
    """(kind, raw row) -> rows of ours, whose prompts are text or messages; raises Unusable."""
    system_message: str | None = None
    """Of all prompts: asks for the form that the task reads."""
    sft_keeps: int = 2
    """SFT keeps one in so many of the prompts that preference data has as well."""
    version: int = 1
    """Increased with every change that affects a row or its pool."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the rows depend on, where that can be chosen."""
    folder: Path | None = None
    """Where relative paths of sources start; None: the working directory."""
    made_by: str
    """The command that makes the pools."""


def gsm8k_rows(kind: str, raw: Mapping[str, Any]) -> Iterable[Row]:
    """Problems with correct and incorrect solutions, in the forms in which they were published:

    {prompt, correct, incorrect?, reference_answer}, {prompt, chosen, rejected}, OpenAI's {question,
    answer}, and OpenAI's labelled solutions {question, ground_truth, NAME: {solution, is_correct}}.
    """
    question = raw.get("question") or raw.get("prompt")
    if not isinstance(question, str) or not question.strip():
        raise Unusable("has no question")
    prompt = f"Question: {_bare(question)}\nAnswer:"
    right, wrong = _solutions(raw)
    named = (raw.get(name) for name in ("reference_answer", "ground_truth", "answer"))
    reference = next((value for value in named if value is not None), None)
    answer = {"answer": _solution(str(reference))} if reference is not None else {}
    if kind == "test":
        if math.accepts(answer or {"answer": None}):
            raise Unusable("has no answer that can be compared with")
        return [{"prompt": prompt} | answer]
    if kind == "sft":
        if not right:
            raise Unusable("has no correct solution")
        return [{"prompt": prompt, "completion": text} | answer for text in right]
    pairs = [(a, b) for a, b in product(right, wrong) if a.split() != b.split()]
    if not pairs:
        raise Unusable("has no pair of a correct and an incorrect solution")
    return [{"prompt": prompt, "chosen": a, "rejected": b} | answer for a, b in pairs]


def _bare(question: str) -> str:
    """A question without the words that some publish around it."""
    return question.strip().removeprefix("Question:").removesuffix("Answer:").strip()


def _solutions(raw: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The correct and the incorrect solutions of a row, each once."""
    labelled = [v for v in raw.values() if isinstance(v, Mapping) and "is_correct" in v]
    right = [text for v in labelled if v["is_correct"] for text in _texts(v.get("solution"))]
    wrong = [text for v in labelled if not v["is_correct"] for text in _texts(v.get("solution"))]
    right += _texts(raw.get("correct")) + _texts(raw.get("chosen"))
    wrong += _texts(raw.get("incorrect")) + _texts(raw.get("rejected"))
    if not labelled and not right:
        right = _texts(raw.get("answer"))
    return [list(dict.fromkeys(map(_solution, some))) for some in (right, wrong)]  # type: ignore[return-value]


def _texts(value: Any) -> list[str]:
    """Text, a list of texts, or the last turn of a conversation, as texts."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    some = value if isinstance(value, list) else [value]
    return [text for text in some if isinstance(text, str) and text.strip()]


def _solution(text: str) -> str:
    """A solution that ends as the task reads it."""
    return _LAST_LINE.sub(r"\n#### \1", _ANNOTATION.sub("", text)).strip()


def tuluif_rows(kind: str, raw: Mapping[str, Any]) -> Iterable[Row]:
    """Tulu 3's persona instructions, {prompt, messages} and {prompt, chosen, rejected}; and IFEval
    as the test, {prompt, instruction_id_list, kwargs}.
    """
    row = {name: raw.get(name) for name in ("prompt", "messages", "chosen", "rejected")}
    if kind == "test":
        columns = {name: raw.get(name) for name in instruction.INSTRUCTION.columns}
        if why := instruction.accepts(columns):
            raise Unusable(f"cannot be checked: {why}")
        return [{"prompt": raw.get("prompt"), "key": raw.get("key")} | columns]
    rows = list(conventional_rows(kind, {k: v for k, v in row.items() if v is not None}))
    if any(_words(row) >= _MOST_WORDS for row in rows):
        raise Unusable(f"has {_MOST_WORDS} words or more")
    return rows


def _words(row: Row) -> int:
    """The words of a prompt with the longest of its answers."""
    turns = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
    longest = max((sum(len(m["content"].split()) for m in turn) for turn in turns), default=0)
    return longest + sum(len(message["content"].split()) for message in row["prompt"])


def conventional_rows(kind: str, raw: Mapping[str, Any]) -> Iterable[Row]:
    """The forms that datasets of the hub have: messages; prompt and completion (or response), with
    a label where they are unpaired; prompt, chosen and rejected; whole conversations as chosen and
    rejected.
    """
    row = dict(raw)
    if "completion" not in row and "response" in row:
        row["completion"] = row["response"]
    messages = row.pop("messages", None)
    answered = kind in ("sft", "validation") or (kind == "preference" and LABEL in row)
    if answered and "completion" not in row and isinstance(messages, list):
        if len(messages) < 2:
            raise Unusable("has less than two messages")
        row["prompt"], row["completion"] = messages[:-1], messages[-1:]
    if not {"prompt", "chosen"} & row.keys() and isinstance(messages, list):
        row["prompt"] = _asked(messages)
    return [checked_row(kind, row, "it")]


def _asked(messages: list[Any]) -> list[Any]:
    """A conversation up to the last turn that is not of the assistant."""
    is_answer = [isinstance(m, Mapping) and m.get("role") == "assistant" for m in messages]
    while is_answer and is_answer[-1]:
        is_answer.pop()
    return messages[: len(is_answer)]


RECIPES = {
    "gsm8k": Recipe(
        sources={
            "sft": "mohit-raghavendra/gsm8k-gpt4ogenerations",
            "preference": "mohit-raghavendra/gsm8k-gpt4opreferences",
            "test": "openai/gsm8k/main:test",
        },
        rows=gsm8k_rows,
        system_message=math.SYSTEM_MESSAGE,
        made_by="python tuning/data/gsm8k_sft.py and gsm8k_pref.py (of files: --source FILE)",
    ),
    "tuluif": Recipe(
        sources={
            "sft": "allenai/tulu-3-sft-personas-instruction-following",
            "preference": "allenai/tulu-3-pref-personas-instruction-following",
            "test": "google/IFEval",
        },
        rows=tuluif_rows,
        system_message=instruction.SYSTEM_MESSAGE,
        sft_keeps=4,  # all pairs are of prompts of SFT's, which has others: each has 10,000 so
        version=2,
        made_by="python tuning/data/tuluif_sft.py and tuluif_pref.py (of files: --source FILE)",
    ),
}
"""The recipes of the loaders that are called by a dataset's name."""
