"""What a row of a pool is: a prompt and answers as chat messages, checked and in one form.

A prompt ends with a user's turn; a completion, chosen and rejected are turns of the assistant. An
answer that repeats the conversation before it, as whole conversations do, is taken to be what
follows; a preference row of two whole conversations needs no prompt of its own. A preference row
with a label is unpaired: one completion, and whether it is a good one.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from tuning.runs.errors import UserError

Messages = list[dict[str, Any]]
ROLES = ("system", "user", "assistant")
ANSWERS = {
    "sft": ("completion",),
    "validation": ("completion",),
    "preference": ("chosen", "rejected"),
    "test": (),
}
"""The columns of a pool that hold answers to its prompts."""
LABEL = "label"
"""Whether the completion of an unpaired preference row is a good one."""
_UNSEEN = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
"""Characters without a width."""


def is_unpaired(pool: str, row: Mapping[str, Any]) -> bool:
    """Whether a row is a single completion with a label."""
    return pool == "preference" and LABEL in row and not {*ANSWERS[pool]} & row.keys()


def answers_of(pool: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a row that hold answers to its prompt."""
    return ("completion",) if is_unpaired(pool, row) else ANSWERS[pool]


def checked_row(pool: str, raw: dict[str, Any], where: str) -> dict[str, Any]:
    """A row with its prompt and answers as messages; other columns are kept as they are.

    Raises UserError, which names the row as `where`, for messages that are none, turns of the wrong
    role, empty ones, a chosen answer that is also the rejected one, and a label that is none.
    """
    columns = answers_of(pool, raw)
    row = raw | {c: _messages(raw[c], c, where) for c in ("prompt", *columns) if c in raw}
    if is_unpaired(pool, raw):
        row[LABEL] = _label(raw[LABEL], where)
    answers = {c: row[c] for c in columns if c in row}
    if "prompt" not in row and len(answers) < 2:
        raise UserError(f"{where} lacks prompt; every row has one.")
    if len(answers) == 2:
        row["prompt"] = _whole_prompt(row.get("prompt"), *answers.values())
    _check_prompt(row["prompt"], where)
    for column, answer in answers.items():
        row[column] = _answer(row["prompt"], answer, column, where)
    if len(answers) == 2 and len({_texts(row[c]) for c in answers}) == 1:
        raise UserError(
            f"{where}: chosen and rejected are the same answer; a pair needs two that differ."
        )
    return row


def asked_as(row: dict[str, Any], system_message: str | None) -> dict[str, Any]:
    """A row whose prompt begins with a system message: its own, or else this one."""
    if not system_message or row["prompt"][0]["role"] == "system":
        return row
    return row | {"prompt": [{"role": "system", "content": system_message}, *row["prompt"]]}


def prompt_key(messages: Sequence[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """What makes two prompts the same: their turns, whatever their blanks and other keys are."""
    return tuple(
        (message["role"], " ".join(unicodedata.normalize("NFC", message["content"]).split()))
        for message in messages
    )


def without_system(messages: Sequence[dict[str, Any]]) -> Messages:
    """The turns of a conversation, without its system message."""
    return [message for message in messages if message["role"] != "system"]


def question_key(messages: Sequence[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """What is asked, by which pools are kept apart: whatever the system message, blanks, letter
    case, characters without a width and compatible forms (NFKC) are.
    """
    return tuple(
        (message["role"], _folded(message["content"])) for message in without_system(messages)
    )


def opening_key(messages: Sequence[dict[str, Any]]) -> tuple[tuple[str, str], ...] | None:
    """The question that a conversation of several turns begins with; None for a single turn."""
    turns = without_system(messages)
    return question_key(turns[:1]) if len(turns) > 1 else None


def _folded(text: str) -> str:
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(unicodedata.normalize("NFKC", text.casefold()).split())


def _label(value: Any, where: str) -> bool:
    if value not in (True, False) or isinstance(value, float):
        raise UserError(
            f"{where}: {LABEL} is {json.dumps(value, default=str)[:60]}; it must be true or false."
        )
    return bool(value)


def _messages(value: Any, column: str, where: str) -> Messages:
    """A column as chat messages: text is one message of the role that belongs there."""
    if isinstance(value, str) and value.strip():
        return [{"role": "user" if column == "prompt" else "assistant", "content": value}]
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        raise UserError(
            f"{where}: {column} is {json.dumps(value, default=str)[:60]}; it must be text or a "
            f'list of {{"role", "content"}} with roles {", ".join(ROLES)}.'
        )
    if empty := [message["role"] for message in value if not message["content"].strip()]:
        raise UserError(f"{where}: {column} has an empty {empty[0]} message; give every one text.")
    return list(value)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    )


def _shared(first: Messages, second: Messages) -> Messages:
    """The turns with which both conversations begin, up to the last one of a user."""
    same = [a for a, b in takewhile(_equal, zip(first, second, strict=False))]
    while same and same[-1]["role"] != "user":
        same.pop()
    return same


def _whole_prompt(prompt: Messages | None, chosen: Messages, rejected: Messages) -> Messages:
    """The prompt of a pair; where two whole conversations have more turns than it names, theirs,
    after its system message if they have none.
    """
    shared = _shared(chosen, rejected)
    if prompt is None or not shared or prompt_key(without_system(prompt)) not in _parts(shared):
        return shared if prompt is None else prompt
    own = [message for message in prompt[:1] if message["role"] == "system"]
    return shared if shared[0]["role"] == "system" else [*own, *shared]


def _parts(conversation: Messages) -> list[tuple[tuple[str, str], ...]]:
    """What a prompt that names a part of a conversation may be: its first or its last question."""
    asked = [message for message in conversation if message["role"] == "user"]
    return [prompt_key([asked[0]]), prompt_key([asked[-1]])]


def _texts(answer: Messages) -> tuple[str, ...]:
    return tuple(message["content"].strip() for message in answer)


def _equal(pair: tuple[dict[str, Any], dict[str, Any]]) -> bool:
    return prompt_key([pair[0]]) == prompt_key([pair[1]])


def _check_prompt(prompt: Messages, where: str) -> None:
    if not prompt:
        raise UserError(
            f"{where} lacks prompt, and chosen and rejected do not begin with the same turns of a "
            "user; give the prompt."
        )
    if prompt[-1]["role"] != "user":
        raise UserError(
            f"{where}: prompt ends with a turn of the {prompt[-1]['role']}; it must end with one "
            "of the user, which is answered."
        )


def _answer(prompt: Messages, answer: Messages, column: str, where: str) -> Messages:
    """An answer without the prompt that it may repeat; turns of the assistant only."""
    for repeated in (prompt, without_system(prompt)):
        if repeated and prompt_key(answer[: len(repeated)]) == prompt_key(repeated):
            answer = answer[len(repeated) :]
            break
    if other := [message["role"] for message in answer if message["role"] != "assistant"]:
        raise UserError(
            f"{where}: {column} has a turn of the {other[0]}; it must have turns of the assistant "
            "only, or repeat the prompt and then answer it."
        )
    if not answer:
        raise UserError(f"{where}: {column} repeats the prompt and does not answer it.")
    return answer
