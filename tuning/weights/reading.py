"""Models, configs and tokenizers from a folder or hub id; a failure to load is a UserError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuning.runs.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def read(location: str, dtype: torch.dtype) -> PreTrainedModel:
    """The weights of a folder or hub id, in host memory."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return pretrained(AutoModelForCausalLM, location, dtype=dtype)  # type: ignore[no-any-return]


def read_config(location: str) -> PretrainedConfig:
    """The shape of a model without its weights."""
    from transformers import AutoConfig

    return pretrained(AutoConfig, location)  # type: ignore[no-any-return]


def read_tokenizer(location: str) -> Any:
    """The tokenizer beside a model."""
    from transformers import AutoTokenizer

    return pretrained(AutoTokenizer, location)


def pretrained(cls: Any, location: str, **kwargs: Any) -> Any:
    """`cls.from_pretrained()`; a UserError where nothing can be loaded."""
    try:
        return cls.from_pretrained(location, **kwargs)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{location}' cannot be loaded: {first} Download it on a machine with network access, "
            "or give a local folder."
        ) from None
