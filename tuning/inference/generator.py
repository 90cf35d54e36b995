"""What inference needs of an engine: several answers to each of some prompts, reproducibly.

A generator opens an artifact, or borrows a loaded model and leaves it as it was. It decides which
prompts are answered together, gives answers as they are finished, and seeds its sampling from the
run and the places of its prompts, so that an inference that was stopped goes on with what is left.
"""

from __future__ import annotations

import hashlib
import pkgutil
import sys
from collections.abc import Collection, Sequence
from collections.abc import Generator as Yields
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tuning.data.encoding import rendered
from tuning.evaluation.config import PassAtKConfig
from tuning.evaluation.generators import GENERATORS
from tuning.weights.artifact import Artifact

Messages = list[dict[str, Any]]
Answers = list[tuple[int, list[str]]]
"""The place of a prompt, and `n_samples` answers to it."""
Portions = Yields[Answers, None, None]
"""Answers as they are finished; closed when no more are wanted."""


class Generator(Protocol):
    """An engine that samples answers."""

    def room(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens that the context of the model leaves for an answer to each prompt; negative where
        the prompt alone is longer.
        """
        ...

    def answers(
        self,
        prompts: Sequence[Messages],
        sampling: PassAtKConfig,
        run_hash: str,
        done: Collection[int] = (),
    ) -> Portions:
        """Answers to all chat prompts but those at the places `done`, in portions, as they are
        finished; a portion may hold answers of `done` again, and may be empty where the caller may
        stop.

        What is drawn is a function of `run_hash`, that of the evaluation, and of the places.
        """
        ...


def opened(backend: str, artifact: Artifact) -> AbstractContextManager[Generator]:
    """The generator of a backend on an artifact, for the length of a `with` block."""
    found: AbstractContextManager[Generator]
    found = pkgutil.resolve_name(GENERATORS[backend].opens)(artifact)
    return found


def seed_of(run_hash: str, sampling_seed: int, number: int) -> int:
    """A seed of 63 bits that only this batch, or prompt, of this run has."""
    text = f"{run_hash}:{sampling_seed}:{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def texts(tokenizer: Any, prompts: Sequence[Messages]) -> list[str]:
    """What a model is given of each prompt: up to where its answer begins."""
    return [rendered(tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]


def token_ids(tokenizer: Any, prompts: Sequence[Messages]) -> list[list[int]]:
    """The same as token ids."""
    found = tokenizer(texts(tokenizer, prompts), add_special_tokens=False)["input_ids"]
    return [list(ids) for ids in found]


def context_of(config: Any) -> int:
    """Tokens of the context of a model, by its transformers config; one that names none is taken to
    have one without end.
    """
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def ends_of(tokenizer: Any, defaults: Any) -> list[int]:
    """The tokens that end a sequence: the end of a turn, as the chat template has it, and the end
    of a document, as the generation defaults of the base model have it.
    """
    ends = defaults.eos_token_id
    return sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
