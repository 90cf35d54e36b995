"""What an SFT run trains on and is measured on, as token ids."""

from __future__ import annotations

from functools import partial
from typing import Any

from tuning.data import train_dataset
from tuning.data.encoding import Encoded, encode
from tuning.training.config_training import SFTRunConfig


def sft_pools(config: SFTRunConfig, tokenizer: Any) -> tuple[list[Encoded], list[Encoded]]:
    """The training examples of an SFT run, and those that its perplexity is measured on."""
    length = config.model.max_seq_length
    rows = config.dataset.rows("sft", config.train_size)
    validation = config.dataset.rows("validation")[: config.perplexity.validation_size]
    where = partial(partial, train_dataset.where, config.dataset.entry)
    return (
        encode(tokenizer, rows, length, where("sft")),
        encode(tokenizer, validation, length, where("validation")),
    )
