"""What inference needs of an engine: several answers to each of some prompts, reproducibly.

A generator opens an artifact, or borrows a loaded model and leaves it as it was. It decides how
many prompts are answered by one call, and seeds every call from the run and the place of its
prompts, so that an inference that was stopped resumes with the same answers.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tuning.evaluation.config import PassAtKConfig
from tuning.evaluation.generators import GENERATORS
from tuning.weights.artifact import Artifact

Messages = list[dict[str, Any]]


class Generator(Protocol):
    """An engine that samples answers."""

    def chunk_size(self, sampling: PassAtKConfig) -> int:
        """Prompts that one call answers, before they are written; the last chunk may be smaller."""
        ...

    def room(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens that the context of the model leaves for an answer to each prompt; negative where
        the prompt alone is longer.
        """
        ...

    def generate(
        self, prompts: Sequence[Messages], sampling: PassAtKConfig, run_hash: str, first: int
    ) -> list[list[str]]:
        """`sampling.n_samples` answers to each chat prompt of a chunk.

        The same for the same arguments: `run_hash` is that of the evaluation, and `first` the place
        of the chunk's first prompt in it.
        """
        ...


def opened(backend: str, artifact: Artifact) -> AbstractContextManager[Generator]:
    """The generator of a backend on an artifact, for the length of a `with` block."""
    found: AbstractContextManager[Generator]
    found = pkgutil.resolve_name(GENERATORS[backend].opens)(artifact)
    return found


def seed_of(run_hash: str, sampling_seed: int, number: int) -> int:
    """A seed of 63 bits that only this chunk, or prompt, of this run has."""
    text = f"{run_hash}:{sampling_seed}:{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
