"""The settings that SFT and preference runs are made of, one dataclass a concern."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from tuning.engine.config import ComputeConfig
from tuning.runs.errors import UserError, choose
from tuning.settings import require, setting
from tuning.weights.config import LoraConfig, ModelLoadConfig

OPTIMIZERS = (
    "auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit",
    "paged_adamw_32bit", "adafactor", "sgd",
)  # fmt: skip
ENGINE_OPTIMIZERS = ("auto", "adamw_torch", "adamw_torch_fused")
"""Names under which the engine's AdamW goes."""
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
_POSITIVE = (
    "num_train_epochs", "learning_rate", "effective_batch_size", "micro_batch_size", "save_steps",
    "max_grad_norm",
)  # fmt: skip


def _on_trl(part: Any, run: Any) -> bool:
    return bool(run.trainer == "trl")


def _only(*methods: str) -> dict[str, Any]:
    """A setting of these preference methods, which changes nothing of the others."""
    return {"hashed": lambda part, run: run.pft_method in methods, "methods": methods}


def _with_osft(part: Any, run: Any) -> bool:
    return bool(part.osft)


@dataclass(frozen=True, kw_only=True)
class TrainingArgumentsConfig:
    """Optimization; the defaults are those of SFT."""

    num_train_epochs: float = 2.0
    """Passes over the training examples."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    effective_batch_size: int = 16
    """Examples an optimizer step, over all devices and accumulation."""
    micro_batch_size: int = setting(4, hashed=False)
    """Examples in one forward pass; changes memory and speed, not the result."""
    optimizer: str = setting("auto", hashed=_on_trl)
    """A name of transformers' optimizers; auto: adamw_8bit on CUDA, adamw_torch elsewhere."""
    lr_scheduler: str = "cosine"
    """Learning-rate schedule of transformers."""
    warmup_ratio: float = 0.1
    """Share of the steps that warm up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 42
    """Of the adapter's initialisation and of the order of examples."""
    save_steps: int = setting(50, hashed=False)
    """Optimizer steps between checkpoints to resume from."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            require(self, name, 0 < getattr(self, name) < math.inf, "above zero and finite")
        require(self, "num_train_epochs", self.num_train_epochs <= 1000, "1000 at most")
        require(self, "seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("lr_scheduler", self.lr_scheduler, SCHEDULERS)
        require(self, "warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)")
        require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "zero or more")

    def require_whole_micro_batches(self) -> None:
        """Raise UserError unless the micro-batch divides the effective batch."""
        micro = min(self.micro_batch_size, self.effective_batch_size)
        if self.effective_batch_size % micro:
            raise UserError(
                f"micro_batch_size {micro} does not divide effective_batch_size "
                f"{self.effective_batch_size}."
            )


@dataclass(frozen=True, kw_only=True)
class EngineSFTConfig(ComputeConfig):
    """What trains; the rest is for the engine, which trains all weights and leaves a full model."""

    trainer: Literal["trl", "engine"] = "trl"
    """trl trains an adapter on one device; engine trains all weights, on any number of them."""
    max_tokens_per_gpu: int = setting(8192, hashed=False)
    """Most tokens of one forward pass a rank: examples are packed up to it (engine)."""
    osft: bool = False
    """Orthogonal subspace fine-tuning: the strongest directions of each matrix stay as they are
    (engine)."""
    osft_unfreeze_rank_ratio: float = setting(0.25, hashed=_with_osft)
    """Share of the directions of each matrix that is trained, from 0.0 to 1.0 (osft)."""


@dataclass(frozen=True, kw_only=True)
class DPOTrainingConfig(TrainingArgumentsConfig):
    """Optimization of the preference methods."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    beta: float = setting(1.0, **_only("dpo", "kto"))
    """How closely the policy is held to the reference model (dpo, kto)."""
    sft_loss_weight: float = setting(0.0, **_only("dpo"))
    """Weight of the language-model loss on the chosen answers beside the DPO loss (dpo)."""
    kl_batch_size: int = setting(8, **_only("kto"))
    """Rows over which the KL term is estimated; the micro-batch of this method, even (kto)."""
    merge_parent: bool = False
    """Merge the parent's adapter into the base and train a new one over it."""
    num_generations: int = setting(8, **_only("grpo"))
    """Answers a prompt (grpo)."""
    max_completion_length: int = setting(512, **_only("grpo"))
    """Longest answer in tokens (grpo)."""
    grpo_temperature: float = setting(1.0, **_only("grpo"))
    """Sampling temperature (grpo)."""
    grpo_beta: float = setting(0.0, **_only("grpo"))
    """Weight of the KL term to the reference model (grpo)."""


def method_settings(method: str, config: type = DPOTrainingConfig) -> list[str]:
    """The settings that this preference method alone, or with others, has."""
    return [f.name for f in fields(config) if method in f.metadata.get("methods", ())]


def check_engine(
    engine: EngineSFTConfig, model: ModelLoadConfig, training: TrainingArgumentsConfig
) -> None:
    """Raise UserError for settings with which the engine cannot train."""
    require(engine, "sep_size", engine.sep_size >= 1, "at least 1")
    ratio = engine.osft_unfreeze_rank_ratio
    require(engine, "osft_unfreeze_rank_ratio", 0 <= ratio <= 1, "between 0.0 and 1.0")
    fits = engine.max_tokens_per_gpu >= model.max_seq_length
    longest = f"max_seq_length, {model.max_seq_length}, or more: every example fits one pass"
    require(engine, "max_tokens_per_gpu", fits, longest)
    if training.optimizer not in ENGINE_OPTIMIZERS:
        raise UserError(
            f"optimizer is {training.optimizer}; the engine trains with AdamW: with --trainer "
            "engine use --optimizer auto."
        )


def refuse_other_trainer(trainer: str, given: Iterable[str]) -> None:
    """Raise UserError for a setting, asked for by name, of the trainer that is not used."""
    others = {f.name for f in fields(EngineSFTConfig)} - {"trainer"}
    why = "is for --trainer engine; the trainer is trl"
    if trainer == "engine":
        others = {f.name for f in fields(LoraConfig)} | {"micro_batch_size"}
        why = "is for --trainer trl; the engine trains all weights, in passes of "
        why += "--max_tokens_per_gpu"
    for name in sorted(others & set(given)):
        raise UserError(f"{name} {why}.")
