"""The choices and flags that all kinds of experiments share: the data, the phases, and the settings
of SFT, preference tuning and evaluation.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tuning.autotune.config import AutotuneConfig, add_autotune_flags
from tuning.engine.config import ComputeConfig, LossConfig
from tuning.evaluation.before_after import HeldOutConfig
from tuning.evaluation.config import PassAtKConfig
from tuning.flags import Parser, add_flags, given
from tuning.phases.options import add_before_after_flags
from tuning.runs.names import require_name
from tuning.sweetspots.config import PassAtKStoppingConfig, PerplexityConfig
from tuning.training.config import (
    DPOTrainingConfig,
    EngineSFTConfig,
    TrainingArgumentsConfig,
    refuse_unused,
    unused,
)
from tuning.weights.config import LoraConfig, ModelLoadConfig

MICRO = ("micro_batch_size",)
"""The setting that SFT and preference tuning both have, as --sft_* and --pft_*."""
NOT_MICRO = tuple(f.name for f in fields(ComputeConfig) if f.name not in MICRO)
PASS_AT_K = tuple(f.name for f in fields(PassAtKStoppingConfig))
RULES = ("perplexity_thresholds", "perplexity_patience", "early_stop", *PASS_AT_K)
"""Settings of sweetspots; only sweetspot experiments have them."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Base of the choices of an experiment; `*_values` are settings by flag name."""

    dataset: str
    task: str
    do_inference: bool = False
    do_evaluation: bool = False
    experiment: str | None = None
    """The name of the experiment (default: derived from its runs)."""
    model_values: Mapping[str, Any] = field(default_factory=dict)
    sft_values: Mapping[str, Any] = field(default_factory=dict)
    pft_values: Mapping[str, Any] = field(default_factory=dict)
    evaluation_values: Mapping[str, Any] = field(default_factory=dict)
    autotune: AutotuneConfig | None = None
    """How to tune what is trained; None: not at all."""
    held_out: HeldOutConfig | None = None
    """What to measure before and after each training; None: nothing."""
    cuda: bool | None = None
    """Whether models will be sampled on CUDA; None: as this machine has it."""

    def __post_init__(self) -> None:
        if self.experiment is not None:
            require_name("experiment", self.experiment)

    @property
    def evaluates(self) -> bool:
        """Whether inference or evaluation is requested."""
        return self.do_inference or self.do_evaluation

    def pft_values_of(self, method: str) -> dict[str, Any]:
        """The settings of preference tuning, without those that this method does not use."""
        return {k: v for k, v in self.pft_values.items() if k not in unused(method)}

    def require_used(self, methods: Collection[str]) -> None:
        """Raise UserError for a setting of preference tuning that none of `methods` uses."""
        for name in self.pft_values:
            if methods and all(name in unused(method) for method in methods):
                refuse_unused(next(iter(methods)), [name])


def add_settings(parser: Parser, *, rules: bool) -> None:
    """The settings of SFT (--sft_*), preference tuning (--pft_*), the model and the evaluation.

    `rules`: whether SFT may have sweetspots; otherwise its perplexity is only measured.
    """
    skip = ("early_stop",) if rules else RULES
    title = "sweetspots" if rules else "perplexity during SFT"
    add_flags(parser, PerplexityConfig, skip=skip, title=title)
    if rules:
        add_flags(parser, PassAtKStoppingConfig, title="sweetspots of pass@k")
    add_flags(parser, TrainingArgumentsConfig, prefix="sft_", title="SFT")
    add_flags(parser, LossConfig, prefix="sft_", title="the loss of SFT")
    add_flags(parser, LoraConfig, prefix="sft_", title="the adapter of SFT")
    add_flags(parser, DPOTrainingConfig, prefix="pft_", title="preference tuning")
    add_flags(parser, LoraConfig, prefix="pft_", title="the adapter of preference tuning")
    add_flags(parser, EngineSFTConfig, title="the trainer of SFT")
    title = "how SFT is computed"
    add_flags(parser, ComputeConfig, skip=MICRO, title=title)
    add_flags(parser, ComputeConfig, prefix="sft_", skip=NOT_MICRO, title=title)
    title = "how preference tuning is computed"
    add_flags(parser, ComputeConfig, prefix="pft_", skip=unused("dpo"), title=title)
    add_flags(parser, ModelLoadConfig, title="the model")
    add_flags(parser, PassAtKConfig, title="inference and evaluation")
    add_autotune_flags(parser, switch=False)
    add_before_after_flags(parser, switch=False)


def settings_given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line, by the fields of Choices."""
    sft = given(args, (TrainingArgumentsConfig, LossConfig, LoraConfig, ComputeConfig), "sft_")
    plain = given(args, (PerplexityConfig, PassAtKStoppingConfig, EngineSFTConfig, ComputeConfig))
    return {
        "model_values": given(args, (ModelLoadConfig,)),
        "sft_values": plain | sft,
        "pft_values": given(args, (DPOTrainingConfig, LoraConfig, ComputeConfig), "pft_"),
        "evaluation_values": given(args, (PassAtKConfig,)),
    }
