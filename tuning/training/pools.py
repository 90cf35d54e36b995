"""What runs are trained on and measured on, as token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tuning.data import train_dataset
from tuning.data.encoding import Encoded, EncodedPair, encode, encode_pairs, prompt_lengths
from tuning.runs.errors import UserError
from tuning.training.config_training import PTRunConfig, SFTRunConfig
from tuning.weights import reading
from tuning.weights.artifact import artifact_of
from tuning.weights.config import ModelLoadConfig


def sft_pools(config: SFTRunConfig, tokenizer: Any) -> tuple[list[Encoded], list[Encoded]]:
    """The training examples of an SFT run, and those that its perplexity is measured on."""
    length, data = config.model.max_seq_length, config.dataset
    rows = data.rows("sft", config.train_size)
    validation = data.rows("validation")[: config.perplexity.validation_size]
    pools = (
        encode(tokenizer, rows, length, data.where("sft")),
        encode(tokenizer, validation, length, data.where("validation")),
    )
    _require_context(config.model, (len(row.ids) for pool in pools for row in pool))
    return pools


def problems(config: SFTRunConfig) -> list[train_dataset.Row]:
    """The rows of the validation pool of which an SFT run measures pass@k."""
    return config.dataset.rows("validation")[: config.pass_at_k.pass_at_k_prompts]


def preference_pairs(config: PTRunConfig, tokenizer: Any, size: int) -> list[EncodedPair]:
    """The first `size` pairs of the preference pool."""
    rows, where = config.dataset.rows("preference", size), config.dataset.where("preference")
    pairs = encode_pairs(tokenizer, rows, config.model.max_seq_length, where)
    longest = (len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs)
    _require_context(config.model, longest)
    return pairs


def unpaired_answers(config: PTRunConfig, tokenizer: Any, size: int) -> list[tuple[Encoded, bool]]:
    """The first `size` completions of an unpaired preference pool, and whether each is good."""
    train_dataset.require_labels(config.dataset.entry, size, config.pft_method)
    rows, where = config.dataset.rows("preference", size), config.dataset.where("preference")
    answers = encode(tokenizer, rows, config.model.max_seq_length, where)
    _require_context(config.model, (len(answer.ids) for answer in answers))
    return [(answer, row["label"]) for answer, row in zip(answers, rows, strict=True)]


def rewarded_rows(config: PTRunConfig, tokenizer: Any, size: int) -> list[dict[str, Any]]:
    """The first `size` rows of the preference pool, to whose prompts answers are sampled."""
    rows, where = config.dataset.rows("preference", size), config.dataset.where("preference")
    lengths = prompt_lengths(tokenizer, rows, config.model.max_seq_length, where)
    answer = config.training.max_completion_length
    _require_context(config.model, (length + answer for length in lengths))
    return rows


def _require_context(model: ModelLoadConfig, lengths: Iterable[int]) -> None:
    """Raise UserError for a sequence that is longer than what the base model was made for."""
    shape = reading.read_config(artifact_of(model).base).get_text_config()
    context, longest = getattr(shape, "max_position_embeddings", None), max(lengths)
    if context is not None and longest > context:
        raise UserError(
            f"the longest example has {longest} tokens, answer included, and the context of "
            f"'{model.model}' is {context}; give --max_seq_length {context} or less (for grpo "
            "--max_completion_length), or leave long prompts out."
        )
