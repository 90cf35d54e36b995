"""The settings that a training run is made of, one dataclass a concern, and what they may be.

Fields marked `hashed: False` change how a run is carried out, not what comes out of it; fields
marked `flag: False` are set by the program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from tuning.engine.config import ComputeConfig
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import digest, settings

T = TypeVar("T", bound="TrainingArgumentsConfig")

ATTENTION_AND_MLP = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
OPTIMIZERS = (
    "auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit",
    "paged_adamw_32bit", "adafactor", "sgd",
)  # fmt: skip
ENGINE_OPTIMIZERS = ("auto", "adamw_torch", "adamw_torch_fused")
"""Names under which the engine's AdamW goes."""
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
_FREE: dict[str, Any] = {"hashed": False}
_INTERNAL: dict[str, Any] = {"flag": False}


def _only(*methods: str) -> dict[str, Any]:
    """A setting of these preference methods, which changes nothing of the others."""
    return {"methods": methods}


@dataclass(frozen=True, kw_only=True)
class ModelLoadConfig:
    """Which base model, and how it is loaded."""

    model: str = field(metadata=_INTERNAL | _FREE)
    """A key of collections.yaml, a hub id (`org/name`) or an absolute path."""
    source: str = field(metadata=_INTERNAL)
    """Where the weights come from: a hub id, `run:NAME`, or `local` for a folder."""
    base_hash: str | None = field(default=None, metadata=_INTERNAL)
    """The hash of the run that made the base model, or of a local folder's files."""
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
        hashed = settings(self)
        del hashed["max_seq_length"]
        return digest({"kind": "base", "settings": hashed})


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
class EngineSFTConfig(ComputeConfig):
    """What trains; the rest is for the engine, which trains all weights and leaves a full model."""

    trainer: Literal["trl", "engine"] = "trl"
    """trl trains an adapter on one device; engine trains all weights, on any number of them."""
    max_tokens_per_gpu: int = field(default=8192, metadata=_FREE)
    """Most tokens of one forward pass a rank: examples are packed up to it (engine)."""
    osft: bool = False
    """Orthogonal subspace fine-tuning: the strongest directions of each matrix stay as they are
    (engine)."""
    osft_unfreeze_rank_ratio: float = 0.25
    """Share of the directions of each matrix that is trained, from 0.0 to 1.0 (osft)."""


@dataclass(frozen=True, kw_only=True)
class DPOTrainingConfig(TrainingArgumentsConfig):
    """Optimization of the preference methods."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    beta: float = field(default=1.0, metadata=_only("dpo", "kto"))
    """How closely the policy is held to the reference model (dpo, kto)."""
    sft_loss_weight: float = field(default=0.0, metadata=_only("dpo"))
    """Weight of the language-model loss on the chosen answers beside the DPO loss (dpo)."""
    kl_batch_size: int = field(default=8, metadata=_only("kto"))
    """Rows over which the KL term is estimated; the micro-batch of this method, even (kto)."""
    merge_parent: bool = False
    """Merge the parent's adapter into the base and train a new one over it."""
    num_generations: int = field(default=8, metadata=_only("grpo"))
    """Answers a prompt (grpo)."""
    max_completion_length: int = field(default=512, metadata=_only("grpo"))
    """Longest answer in tokens (grpo)."""
    grpo_temperature: float = field(default=1.0, metadata=_only("grpo"))
    """Sampling temperature (grpo)."""
    grpo_beta: float = field(default=0.0, metadata=_only("grpo"))
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


def _require(settings: Any, name: str, holds: bool, what: str) -> None:
    """Raise UserError for a setting unless `holds`."""
    if not holds:
        value = getattr(settings, name)
        shown = "empty" if value == () else value
        raise UserError(f"{name} is {shown}; it must be {what}.")


def checked_model(model: ModelLoadConfig) -> ModelLoadConfig:
    """The same; UserError for what cannot be."""
    _require(model, "max_seq_length", model.max_seq_length > 1, "above 1")
    return model


def checked_lora(lora: LoraConfig) -> LoraConfig:
    """The same; UserError for what cannot be."""
    for name in ("lora_r", "lora_alpha"):
        _require(lora, name, getattr(lora, name) > 0, "above zero")
    _require(lora, "lora_dropout", 0 <= lora.lora_dropout < 1, "in [0, 1)")
    _require(lora, "target_modules", bool(lora.target_modules), "one or more names of layers")
    return lora


def checked_training(training: T, *, splits: bool = True) -> T:
    """The same settings with a micro-batch that fits; UserError for what cannot be.

    `splits`: whether batches are split into micro-batches of a fixed size at all.
    """
    for name in _POSITIVE:
        value = getattr(training, name)
        _require(training, name, 0 < value < math.inf, "above zero and finite")
    _require(training, "num_train_epochs", training.num_train_epochs <= 1000, "1000 at most")
    _require(training, "seed", 0 <= training.seed < 2**32, "between 0 and 2**32 - 1")
    choose("optimizer", training.optimizer, OPTIMIZERS)
    choose("lr_scheduler", training.lr_scheduler, SCHEDULERS)
    _require(training, "warmup_ratio", 0 <= training.warmup_ratio < 1, "in [0, 1)")
    _require(training, "weight_decay", 0 <= training.weight_decay < math.inf, "zero or more")
    micro = min(training.micro_batch_size, training.effective_batch_size)
    if splits and training.effective_batch_size % micro:
        raise UserError(
            f"micro_batch_size {micro} does not divide effective_batch_size "
            f"{training.effective_batch_size}."
        )
    return replace(training, micro_batch_size=micro)


def check_engine(
    engine: EngineSFTConfig,
    model: ModelLoadConfig,
    training: TrainingArgumentsConfig,
    given: Iterable[str],
) -> None:
    """Raise UserError for what cannot be; `given` are the settings that were asked for by name.

    What belongs to the other trainer is refused where it was asked for, and else not looked at.
    """
    _refuse_strangers(engine.trainer, set(given))
    if engine.trainer == "trl":
        return
    _require(engine, "sep_size", engine.sep_size >= 1, "at least 1")
    ratio = engine.osft_unfreeze_rank_ratio
    _require(engine, "osft_unfreeze_rank_ratio", 0 <= ratio <= 1, "between 0.0 and 1.0")
    fits = engine.max_tokens_per_gpu >= model.max_seq_length
    longest = f"max_seq_length, {model.max_seq_length}, or more: every example fits one pass"
    _require(engine, "max_tokens_per_gpu", fits, longest)
    if training.optimizer not in ENGINE_OPTIMIZERS:
        raise UserError(
            f"optimizer is {training.optimizer}; the engine trains with AdamW: with --trainer "
            "engine use --optimizer auto."
        )


def _refuse_strangers(trainer: str, given: set[str]) -> None:
    """Raise UserError for a setting of the trainer that is not used."""
    others = {f.name for f in fields(EngineSFTConfig)} - {"trainer"}
    why = "is for --trainer engine; the trainer is trl"
    if trainer == "engine":
        others = {f.name for f in fields(LoraConfig)} | {"micro_batch_size"}
        why = "is for --trainer trl; the engine trains all weights, in passes of "
        why += "--max_tokens_per_gpu"
    for name in sorted(others & given):
        raise UserError(f"{name} {why}.")


_POSITIVE = (
    "num_train_epochs", "learning_rate", "effective_batch_size", "micro_batch_size", "save_steps",
    "max_grad_norm",
)  # fmt: skip


def checked_preference(training: DPOTrainingConfig, method: str) -> DPOTrainingConfig:
    """The same for a preference method; settings of the others are not looked at."""
    t = training
    if method in ("dpo", "kto"):
        _require(t, "beta", 0 < t.beta < math.inf, "above zero and finite")
    if method == "dpo":
        _require(t, "sft_loss_weight", 0 <= t.sft_loss_weight < math.inf, "zero or more")
    if method == "kto":
        rows = 2 * t.effective_batch_size
        fits = t.kl_batch_size > 0 and t.kl_batch_size % 2 == 0 and rows % t.kl_batch_size == 0
        _require(t, "kl_batch_size", fits, f"even and divide the {rows} rows of a step")
    if method == "grpo":
        _require(t, "num_generations", t.num_generations >= 2, "2 or more: answers are compared")
        _require(t, "max_completion_length", t.max_completion_length > 0, "above zero")
        _require(t, "grpo_temperature", 0 < t.grpo_temperature < math.inf, "above zero and finite")
        _require(t, "grpo_beta", 0 <= t.grpo_beta < math.inf, "zero or more")
    return checked_training(training)


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
    patience = [parse_patience(rule) for rule in perplexity.perplexity_patience]
    _no_repeats("perplexity_patience", [f"{n}:{decrease}" for n, decrease in patience])
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
