"""Chat rows as token ids, in one way for training, perplexity and the check of lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tuning.data import train_dataset
from tuning.evaluation.perplexity import Encoded
from tuning.runs.errors import UserError
from tuning.training.config_training import SFTRunConfig


def sft_pools(
    config: SFTRunConfig, tokenizer: Any, say: Callable[[str], None] = print
) -> tuple[list[Encoded], list[Encoded]]:
    """What an SFT run trains on, and what its perplexity is measured on."""
    name, length = config.dataset.dataset, config.model.max_seq_length
    rows = train_dataset.rows(name, "sft", config.dataset.train_size)
    validation = train_dataset.rows(name, "validation")[: config.perplexity.validation_size]
    return encode(tokenizer, rows, length, say), encode(tokenizer, validation, length, say)


def encode(
    tokenizer: Any,
    rows: Iterable[dict[str, Any]],
    max_length: int,
    say: Callable[[str], None] = print,
) -> list[Encoded]:
    """Prompt and response ids of SFT rows; what is longer than `max_length` loses the end of its
    response.

    The response begins where the rendered conversation leaves the rendered prompt, and ends with
    its turn. Raises UserError where a prompt alone fills `max_length`.
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
                f"the prompt of row {number} has {shared} tokens; max_seq_length is {max_length}."
            )
        if tokenizer.eos_token_id in whole[shared:]:
            whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]
        cut += len(whole) > max_length
        encoded.append(Encoded(prompt=whole[:shared], response=whole[shared:max_length]))
    if cut:
        say(f"warning: {cut} of {len(encoded)} examples were cut at {max_length} tokens")
    return encoded


def _ids(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
