"""SFT and preference runs on the small site, with the sizes that tests of names count on."""

from __future__ import annotations

from tuning.training.config_training import (
    Parent,
    PTRunConfig,
    SFTRunConfig,
    preference_config,
    sft_config,
)
from tuning.training.parents import parent_of


def sft(model: str = "tiny", size: int = 500, **values) -> SFTRunConfig:
    return sft_config(model=model, dataset="arith", task="math", train_size=size, values=values)


def pt(
    method: str = "dpo",
    parent: Parent | None = None,
    model: str = "tiny",
    size: int | None = 300,
    **values,
) -> PTRunConfig:
    return preference_config(
        model=model, dataset="arith", task="math", pft_method=method, train_size=size,
        parent=parent, values=values,
    )  # fmt: skip


def fork(method: str = "dpo", label: str = "ppl-2.0", of: SFTRunConfig | None = None, **values):
    of = of or sft(perplexity_thresholds=(2.0,))
    return pt(method, parent_of(of, of.run_name, label, 1000), size=None, **values)


def suffixed(name: str, config: SFTRunConfig | PTRunConfig) -> str:
    return f"{name}-{config.hash[:8]}"
