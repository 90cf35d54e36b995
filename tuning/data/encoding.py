"""Chat rows as token ids, in one way for every trainer, perplexity and the check of lengths."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tuning.runs.errors import UserError
from tuning.runs.log import logger

IGNORED = -100
"""The label of a token that has no loss."""

Where = Callable[[int], str]
"""The place of a row, by its number in the pool, as a message names it."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A prompt and its response as token ids."""

    prompt: list[int]
    response: list[int]

    @property
    def ids(self) -> list[int]:
        """The whole sequence."""
        return self.prompt + self.response

    @property
    def labels(self) -> list[int]:
        """One label a token, with the loss on the response only."""
        return [IGNORED] * len(self.prompt) + self.response


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """A prompt, its chosen and its rejected answer as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def encode(
    tokenizer: Any, rows: Iterable[dict[str, Any]], max_length: int, where: Where
) -> list[Encoded]:
    """Prompt and response ids of SFT rows; see `_Encoder`."""
    encoder = _Encoder(tokenizer, max_length, where)
    encoded = [
        encoder.answered(number, row["prompt"], row["completion"])
        for number, row in enumerate(rows)
    ]
    encoder.warn()
    return encoded


def encode_pairs(
    tokenizer: Any, rows: Iterable[dict[str, Any]], max_length: int, where: Where
) -> list[EncodedPair]:
    """Prompt, chosen and rejected ids of preference rows; see `_Encoder`.

    Raises UserError besides where both answers are the same once they are cut.
    """
    encoder = _Encoder(tokenizer, max_length, where)
    pairs = [encoder.pair(number, row) for number, row in enumerate(rows)]
    encoder.warn()
    return pairs


def prompt_lengths(
    tokenizer: Any, rows: Iterable[dict[str, Any]], max_length: int, where: Where
) -> list[int]:
    """The tokens of each prompt; UserError for one that leaves no room for an answer."""
    lengths = []
    for number, row in enumerate(rows):
        with _named(where(number)):
            lengths.append(len(_ids(tokenizer, row["prompt"], add_generation_prompt=True)))
        _require_room(lengths[-1], max_length, where(number))
    return lengths


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """A conversation in the words of the chat template; UserError for one that it refuses."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the chat template refuses turns of {roles}: {error}") from None
    return text


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Name the row in an error about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


class _Encoder:
    """Encodes the rows of a pool, and counts what differs from what they say.

    A response begins where the rendered conversation leaves the rendered prompt, and ends with its
    turn; beyond `max_length` its end is lost. Raises UserError where a prompt alone fills that.
    """

    def __init__(self, tokenizer: Any, max_length: int, where: Where) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.where = where
        self.answers = 0
        self.cut = 0
        self.left_out: list[str] = []

    def answered(
        self, number: int, prompt: list[dict[str, Any]], answer: list[dict[str, Any]]
    ) -> Encoded:
        """A prompt with one answer."""
        with _named(self.where(number)):
            asked = _ids(self.tokenizer, prompt, add_generation_prompt=True)
            whole = _ids(self.tokenizer, prompt + answer)
            shared = _shared(asked, whole)
            if shared < len(asked):
                self._require_prompt(prompt, shared)
                self.left_out.append(self.tokenizer.decode(asked[shared:]))
        _require_room(shared, self.max_length, self.where(number))
        response = self._to_end_of_turn(whole[shared:])
        if not response:
            raise UserError(f"{self.where(number)}: the chat template leaves the answer out.")
        room = self.max_length - shared
        self.answers += 1
        self.cut += len(response) > room
        return Encoded(prompt=whole[:shared], response=response[:room])

    def pair(self, number: int, row: dict[str, Any]) -> EncodedPair:
        """A prompt with two answers, which follow the tokens that both have of it."""
        chosen = self.answered(number, row["prompt"], row["chosen"])
        rejected = self.answered(number, row["prompt"], row["rejected"])
        if chosen.ids == rejected.ids:
            raise UserError(
                f"{self.where(number)}: chosen and rejected are the same in the first "
                f"{self.max_length} tokens; raise max_seq_length, or leave the row out."
            )
        shared = min(len(chosen.prompt), len(rejected.prompt))
        return EncodedPair(
            prompt=chosen.ids[:shared],
            chosen=chosen.ids[shared:],
            rejected=rejected.ids[shared:],
        )

    def warn(self) -> None:
        """Say what was cut, and where training and sampling see different prompts."""
        of = f"of {self.answers} answers"
        if self.cut:
            logger.warning(f"{self.cut} {of} were cut at {self.max_length} tokens")
        if self.left_out:
            logger.warning(
                f"{len(self.left_out)} {of} are trained without "
                f"{self.left_out[0]!r}, with which their prompts end when the model is asked: the "
                "chat template, or the tokens across the border, differ; use a template that "
                "renders both alike"
            )

    def _require_prompt(self, prompt: list[dict[str, Any]], shared: int) -> None:
        """Raise UserError where the conversation does not begin with the turns of its prompt."""
        turns = _ids(self.tokenizer, prompt)
        if shared < len(turns) - 1:
            raise UserError(
                "the chat template renders the prompt otherwise where an answer follows, from "
                f"{self.tokenizer.decode(turns[shared:])[:60]!r} on; what the user says would be "
                "trained. Use another --chat_template."
            )

    def _to_end_of_turn(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids


def _require_room(length: int, max_length: int, where: str) -> None:
    if length >= max_length:
        raise UserError(
            f"{where}: the prompt has {length} tokens and max_seq_length is {max_length}, which "
            "leaves no room for an answer; raise it, or leave the row out."
        )


def _shared(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    ends = min(len(first), len(second))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), ends)


def _ids(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    text = rendered(tokenizer, messages, **kwargs)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
