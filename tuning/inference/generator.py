"""What inference needs of an engine: several answers to each prompt of a batch, from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tuning.evaluation.config import PassAtKConfig


class Generator(Protocol):
    """An engine that samples answers."""

    def generate(
        self, prompts: Sequence[list[dict[str, Any]]], sampling: PassAtKConfig, seed: int
    ) -> list[list[str]]:
        """`sampling.n_samples` answers to each chat prompt; the same for the same arguments."""
        ...
