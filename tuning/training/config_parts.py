"""The settings that a training run is made of, one dataclass a concern, and what they may be.

Fields marked `hashed: False` change how a run is carried out, not what comes out of it; fields
marked `flag: False` are set by the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from tuning.runs.errors import UserError
from tuning.runs.identity import digest, settings

T = TypeVar("T", bound="TrainingArgumentsConfig")

ATTENTION_AND_MLP = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
_FREE: dict[str, Any] = {"hashed": False}
_INTERNAL: dict[str, Any] = {"flag": False}


@dataclass(frozen=True, kw_only=True)
class ModelLoadConfig:
    """Which base model, and how it is loaded."""

    model: str = field(metadata=_INTERNAL | _FREE)
    """A key of collections.yaml, a hub id (`org/name`) or an absolute path."""
    source: str = field(metadata=_INTERNAL)
    """What identifies the weights: a hub id, `run:NAME` or a local path."""
    base_hash: str | None = field(default=None, metadata=_INTERNAL)
    """The hash of the run that made the base model, where one did."""
    chat_template: str | None = None
    """A file of tuning/data/chat_templates without its ending; none: the tokenizer's own."""
    max_seq_length: int = 1024
    """Longest prompt and response together, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights; auto: bfloat16 on CUDA, float32 elsewhere."""

    @property
    def label(self) -> str:
        """The model in run names."""
        is_path = self.model.startswith("/")
        return self.model.rpartition("/")[2] if is_path else self.model.replace("/", "--")

    @property
    def identity_hash(self) -> str:
        """Over the weights, the chat template and the precision of the base model."""
        return digest({"kind": "base", "settings": settings(self)})


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which dataset, which of its pools, and how much of it."""

    dataset: str = field(metadata=_INTERNAL)
    """A key of collections.yaml."""
    dataset_type: str = field(metadata=_INTERNAL)
    """`sft` or `pt`: the pool that it is a prefix of."""
    version: str = field(metadata=_INTERNAL)
    """Changes when the content of the dataset does."""
    train_size: int | None = field(metadata=_INTERNAL)
    """Examples; None for a fork, which takes what its parent left."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter that is trained over the frozen base model."""

    lora_r: int = 32
    """Rank of the update matrices."""
    lora_alpha: int = 32
    """Scale: the update is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Dropout before the adapter."""
    target_modules: tuple[str, ...] = ATTENTION_AND_MLP
    """Linear layers that get an adapter."""
    full_modules: tuple[str, ...] = ()
    """Modules that are trained whole (peft's modules_to_save)."""


@dataclass(frozen=True, kw_only=True)
class TrainingArgumentsConfig:
    """Optimization; the defaults are those of SFT."""

    num_train_epochs: float = 2.0
    """Passes over the training examples."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    effective_batch_size: int = 16
    """Examples an optimizer step, over all devices and accumulation."""
    micro_batch_size: int = field(default=4, metadata=_FREE)
    """Examples in one forward pass; changes memory and speed, not the result."""
    optimizer: str = "auto"
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
    save_steps: int = field(default=50, metadata=_FREE)
    """Optimizer steps between checkpoints to resume from."""


@dataclass(frozen=True, kw_only=True)
class DPOTrainingConfig(TrainingArgumentsConfig):
    """Optimization of the preference methods."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    beta: float = 1.0
    """How closely the policy is held to the reference model (dpo, kto)."""
    sft_loss_weight: float = 0.0
    """Weight of the language-model loss on the chosen answers beside the DPO loss (dpo)."""
    kl_batch_size: int = 8
    """Rows over which the KL term is estimated; the micro-batch of this method, even (kto)."""
    merge_parent: bool = False
    """Merge the parent's adapter into the base and train a new one over it."""
    num_generations: int = 8
    """Answers a prompt (grpo)."""
    max_completion_length: int = 512
    """Longest answer in tokens (grpo)."""
    grpo_temperature: float = 1.0
    """Sampling temperature (grpo)."""
    grpo_beta: float = 0.0
    """Weight of the KL term to the reference model (grpo)."""


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """When SFT reaches a sweetspot, and when it may stop."""

    perplexity_thresholds: tuple[float, ...] = ()
    """Save a sweetspot when the validation perplexity falls to each of these."""
    perplexity_patience: tuple[str, ...] = ()
    """Save one too when it stops falling: N:DELTA, by less than DELTA in each of N evaluations."""
    eval_steps: int = 10
    """Optimizer steps between two measurements."""
    validation_size: int = 256
    """Examples of the validation pool to measure on; at most all."""
    early_stop: bool = True
    """Stop when the last rule has fired."""


def checked_training(training: T) -> T:
    """The same settings with a micro-batch that fits; UserError for what cannot be."""
    positive = ("num_train_epochs", "learning_rate", "effective_batch_size", "micro_batch_size",
                "save_steps", "max_grad_norm")  # fmt: skip
    for name in positive:
        if not getattr(training, name) > 0:
            raise UserError(f"{name} is {getattr(training, name)}; it must be above zero.")
    if not 0 <= training.warmup_ratio < 1:
        raise UserError(f"warmup_ratio is {training.warmup_ratio}; it must be in [0, 1).")
    if isinstance(training, DPOTrainingConfig):
        _checked_preference(training)
    micro = min(training.micro_batch_size, training.effective_batch_size)
    if training.effective_batch_size % micro:
        raise UserError(
            f"micro_batch_size {micro} does not divide effective_batch_size "
            f"{training.effective_batch_size}."
        )
    return replace(training, micro_batch_size=micro)


def _checked_preference(training: DPOTrainingConfig) -> None:
    if training.num_generations < 2:
        raise UserError(f"num_generations is {training.num_generations}; a group needs 2 at least.")
    if training.kl_batch_size % 2 or (2 * training.effective_batch_size) % training.kl_batch_size:
        raise UserError(
            f"kl_batch_size is {training.kl_batch_size}; it must be even and divide "
            f"twice the effective batch size, {2 * training.effective_batch_size}."
        )


def parse_patience(rule: str) -> tuple[int, float]:
    """`2:0.02` as (evaluations, smallest decrease)."""
    found = re.fullmatch(r"(\d+):(\d*\.?\d+(?:[eE][-+]?\d+)?)", rule)
    if not found or int(found[1]) < 1 or float(found[2]) <= 0:
        raise UserError(
            f"perplexity_patience is '{rule}'; write EVALUATIONS:DECREASE, both above zero, "
            "for example 2:0.02."
        )
    return int(found[1]), float(found[2])


def checked_rules(perplexity: PerplexityConfig) -> PerplexityConfig:
    """The same rules, thresholds from high to low; UserError for what cannot be."""
    thresholds = perplexity.perplexity_thresholds
    check_thresholds(thresholds)
    for rule in perplexity.perplexity_patience:
        parse_patience(rule)
    _no_repeats("perplexity_patience", perplexity.perplexity_patience)
    for name in ("eval_steps", "validation_size"):
        if getattr(perplexity, name) < 1:
            raise UserError(f"{name} is {getattr(perplexity, name)}; it must be at least 1.")
    return replace(perplexity, perplexity_thresholds=tuple(sorted(thresholds, reverse=True)))


def check_thresholds(thresholds: Iterable[float]) -> None:
    """Raise UserError unless all thresholds are above one and none stands twice."""
    values = list(thresholds)
    for value in values:
        if not 1 < value < float("inf"):
            raise UserError(
                f"perplexity threshold {value} cannot be reached; thresholds are numbers above 1.0."
            )
    _no_repeats("perplexity_thresholds", values)


def _no_repeats(name: str, values: Iterable[Any]) -> None:
    seen = list(values)
    for value in seen:
        if seen.count(value) > 1:
            raise UserError(f"{name} names {value} more than once.")
