"""Chat rows as token ids, in one way for training, perplexity and the check of lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tuning.runs.errors import UserError
from tuning.runs.log import logger

IGNORED = -100
"""The label of a token that has no loss."""


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


def encode(
    tokenizer: Any,
    rows: Iterable[dict[str, Any]],
    max_length: int,
    where: Callable[[int], str] = lambda number: f"row {number + 1}",
) -> list[Encoded]:
    """Prompt and response ids of SFT rows; a row longer than `max_length` loses the end of its
    response.

    The response begins where the rendered conversation leaves the rendered prompt, and ends with
    its turn. Raises UserError where a prompt alone fills `max_length`; `where` names a row by its
    number from 0.
    """
    encoded, cut = [], 0
    for number, row in enumerate(rows):
        prompt = _ids(tokenizer, row["prompt"], add_generation_prompt=True)
        whole = _ids(tokenizer, row["prompt"] + row["completion"])
        shared = next(
            (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
            min(len(prompt), len(whole)),
        )
        if shared >= max_length:
            raise UserError(
                f"{where(number)}: the prompt has {shared} tokens; max_seq_length is {max_length}."
            )
        if tokenizer.eos_token_id in whole[shared:]:
            whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]
        cut += len(whole) > max_length
        encoded.append(Encoded(prompt=whole[:shared], response=whole[shared:max_length]))
    if cut:
        logger.warning(f"{cut} of {len(encoded)} examples were cut at {max_length} tokens")
    return encoded


def _ids(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
