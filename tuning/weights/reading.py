"""Models, configs and tokenizers from a folder or hub id; a failure to load is a UserError."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.runs.errors import UserError
from tuning.weights import kernels

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


_LAYER = re.compile(r"^(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h|blocks)\.\d+\.")
"""Weights of a layer of a language model; vision towers and extra heads may be left over."""


def read(location: str, dtype: torch.dtype, **how: Any) -> PreTrainedModel:
    """The weights of a folder or hub id: in host memory, unless `how`, further arguments of
    from_pretrained(), says something else.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    kernels.leave_out_cudnn_attention()
    how = {"dtype": dtype, "output_loading_info": True, **how}
    model, info = pretrained(AutoModelForCausalLM, location, **how)
    if absent := sorted(info["missing_keys"]):
        raise UserError(
            f"'{location}' cannot be loaded: of the weights that its config.json asks for, "
            f"{len(absent)} are missing ({absent[0]}, ...), and would be random."
        )
    if more := [key for key in sorted(info["unexpected_keys"]) if _LAYER.search(key)]:
        raise UserError(
            f"'{location}' cannot be loaded: its weights have layers that its config.json does not "
            f"ask for ({more[0]}, ...), and would be left out."
        )
    return model  # type: ignore[no-any-return]


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
    with readable(location):
        return cls.from_pretrained(location, **kwargs)


@contextlib.contextmanager
def readable(location: str) -> Iterator[None]:
    """A UserError for whatever a library raises while it reads the files of `location`."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        known = isinstance(error, OSError | ValueError) and first
        todo = (
            "Download or copy the folder again."
            if Path(location).is_dir()
            else "Download it on a machine with network access, or give a local folder."
        )
        text = " ".join(str(error).split())[:200]
        reason = first if known else f"{type(error).__name__}: {text}."
        raise UserError(f"'{location}' cannot be loaded: {reason} {todo}") from None
