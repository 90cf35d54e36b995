"""What the names of SFT and preference runs show: a seed that is not the default, and a hash where
they differ from the defaults in anything else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuning.settings import RunConfig


def shown(made: RunConfig, default: RunConfig) -> dict[str, Any]:
    """`is_default` and `named_seed` of a run, given the same run with its model's defaults."""
    run: Any = made
    ours: Any = default
    seed = run.training.seed
    seeded = replace(ours, training=replace(ours.training, seed=seed))
    return {
        "is_default": made.hashed == seeded.hashed,
        "named_seed": None if seed == ours.training.seed else seed,
    }


def with_seed(name: str, seed: int | None) -> str:
    """`{name}_seed-{seed}`; the name alone where the seed is the default."""
    return name if seed is None else f"{name}_seed-{seed}"
