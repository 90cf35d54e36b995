"""The settings that SFT and preference runs are made of, one dataclass a concern."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tuning.engine.config import ComputeConfig, OSFTConfig
from tuning.flags import build
from tuning.methods import METHODS
from tuning.runs.errors import UserError, choose
from tuning.settings import require, setting
from tuning.weights.config import LoraConfig, ModelLoadConfig
from tuning.weights.shape import Adapter, Shape, in_subspaces

OPTIMIZERS = (
    "auto",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
)
ENGINE_OPTIMIZERS = ("auto", "adamw_torch", "adamw_torch_fused")
"""Names of optimizers that the engine's AdamW serves."""
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
_POSITIVE = (
    "num_train_epochs",
    "learning_rate",
    "effective_batch_size",
    "save_steps",
    "max_grad_norm",
)
MICRO_BATCH = 4
"""Examples of a forward pass with TRL, unless --micro_batch_size is given."""
PACKED_TOKENS = 8192
"""Tokens of a forward pass in SFT on the engine, unless --max_tokens_per_gpu is given."""


ON_TRL = ("ddp", "fsdp2")
"""Ways of --parallel that TRL has, through accelerate."""


def _on_trl(part: Any, run: Any) -> bool:
    return bool(run.trainer == "trl")


def _trains_an_adapter(part: Any, run: Any) -> bool:
    """Where all weights are trained, a parent's adapter is merged in any case."""
    return run is part or not run.lora.full


def _only(*methods: str) -> dict[str, Any]:
    """A setting of these preference methods, without effect on the others."""
    return {"hashed": lambda part, run: run.pft_method in methods, "methods": methods}


@dataclass(frozen=True, kw_only=True)
class TrainingArgumentsConfig:
    """Optimization; the defaults are those of SFT."""

    num_train_epochs: float = 2.0
    """Passes over the training examples."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    effective_batch_size: int = 16
    """Examples per optimizer step, over all devices and gradient accumulation steps."""
    optimizer: str = setting("auto", hashed=_on_trl)
    """Optimizer, by its transformers name; auto: adamw_8bit on CUDA, adamw_torch elsewhere."""
    lr_scheduler: str = "cosine"
    """Learning-rate schedule of transformers."""
    warmup_ratio: float = 0.1
    """Fraction of the training steps used for learning rate warmup."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 42
    """Seed of the adapter's initialization and of the order of examples."""
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


@dataclass(frozen=True, kw_only=True)
class EngineSFTConfig(OSFTConfig):
    """The trainer of SFT, and the settings that only the engine has."""

    trainer: Literal["trl", "engine"] = "trl"
    """trl trains an adapter, engine all weights; either in several processes."""


@dataclass(frozen=True, kw_only=True)
class DPOTrainingConfig(TrainingArgumentsConfig):
    """Optimization of the preference methods."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    beta: float = setting(1.0, **_only("dpo", "kto"))
    """Strength of the KL constraint to the reference model (dpo, kto)."""
    sft_loss_weight: float = setting(0.0, **_only("dpo"))
    """Weight of the language-model loss on the chosen answers beside the DPO loss (dpo)."""
    kl_batch_size: int = setting(8, **_only("kto"))
    """Rows over which the KL term is estimated; the micro-batch of this method, even (kto)."""
    merge_parent: bool = setting(False, hashed=_trains_an_adapter)
    """Merge the parent's adapter into the base and train a new one over it."""
    num_generations: int = setting(8, **_only("grpo"))
    """Completions sampled per prompt (grpo)."""
    max_completion_length: int = setting(512, **_only("grpo"))
    """Longest answer in tokens (grpo)."""
    grpo_temperature: float = setting(1.0, **_only("grpo"))
    """Sampling temperature (grpo)."""
    grpo_beta: float = setting(0.0, **_only("grpo"))
    """Weight of the KL term to the reference model (grpo)."""


def method_settings(method: str, config: type = DPOTrainingConfig) -> list[str]:
    """The settings that this preference method alone, or with others, has."""
    return [name for name, methods in _by_method(config).items() if method in methods]


def _by_method(config: type) -> dict[str, tuple[str, ...]]:
    """The settings of some preference methods only, and those methods."""
    return {f.name: f.metadata["methods"] for f in fields(config) if "methods" in f.metadata}


def _names(*parts: type) -> frozenset[str]:
    return frozenset(f.name for part in parts for f in fields(part))


_METHOD_SETTINGS = _by_method(DPOTrainingConfig)
_ON_TRL = _names(LoraConfig) | {"micro_batch_size", "gradient_checkpointing", "parallel"}
_ON_ENGINE = _names(OSFTConfig, ComputeConfig) - {"micro_batch_size"}
_REFUSED = {
    "trl": "is for --trainer engine; the trainer is trl",
    "engine": "is for --trainer trl; the engine trains all weights, in passes of "
    "--max_tokens_per_gpu",
}


def used(trainer: str) -> frozenset[str]:
    """The settings of LoraConfig, OSFTConfig and ComputeConfig that a trainer of SFT, or a
    preference method, uses.
    """
    if trainer == "engine":
        return _ON_ENGINE
    whole = trainer == "trl" or METHODS[trainer].micro_batches
    return _ON_TRL if whole else _ON_TRL - {"micro_batch_size"}


def unused(trainer: str) -> frozenset[str]:
    """The settings of how to train that a trainer, or preference method, does not use."""
    left = (_ON_TRL | _ON_ENGINE) - used(trainer)
    if trainer in METHODS:
        left |= _METHOD_SETTINGS.keys() - set(method_settings(trainer))
    return left


def refuse_unused(trainer: str, given: Iterable[str]) -> None:
    """Raise UserError for a setting, asked for by name, that the trainer does not use."""
    given = set(given)
    for name in sorted(unused(trainer) & given):
        why = _REFUSED.get(trainer, f"is for SFT with --trainer engine; {trainer} trains with TRL")
        if trainer in METHODS and name == "micro_batch_size":
            why = f"is not used by {trainer}: its micro-batch is part of its result"
        elif trainer in METHODS and name in _METHOD_SETTINGS:
            why = f"is not used by {trainer}; it is for {', '.join(_METHOD_SETTINGS[name])}"
        raise UserError(f"{name} {why}.")


def refuse_adapter(given: Iterable[str]) -> None:
    """Raise UserError for a setting of an adapter, asked for by name, where all weights are
    trained.
    """
    adapter = _names(LoraConfig) - {"full"} | {"merge_parent"}
    for name in sorted(adapter & set(given)):
        raise UserError(
            f"{name} is for an adapter, and --full trains all weights; leave one of them out."
        )


def compute_config(trainer: str, values: Mapping[str, Any], effective_batch: int) -> ComputeConfig:
    """The settings of a trainer, or preference method, from `values` and its own defaults; the
    micro-batch is no larger than the batch, and divides it unless it was given.
    """
    compute = build(ComputeConfig, values)
    if trainer == "engine":
        return replace(compute, max_tokens_per_gpu=compute.max_tokens_per_gpu or PACKED_TOKENS)
    if values.get("parallel") is None:
        compute = replace(compute, parallel="ddp")
    elif compute.parallel not in ON_TRL:
        raise UserError(
            f"parallel {compute.parallel} is for --trainer engine; TRL takes {' or '.join(ON_TRL)}."
        )
    given = compute.micro_batch_size
    default = largest_divisor(effective_batch, MICRO_BATCH)
    micro = min(given, effective_batch) if given else default
    return replace(compute, micro_batch_size=micro)


def require_whole_micro_batches(compute: ComputeConfig, effective_batch: int) -> None:
    """Raise UserError unless the micro-batch divides the effective batch."""
    micro = compute.micro_batch_size
    if micro and effective_batch % micro:
        raise UserError(
            f"micro_batch_size {micro} does not divide effective_batch_size {effective_batch}."
        )


def require_shared(run: Any, processes: int) -> None:
    """Raise UserError unless so many processes can train a run. With TRL its effective batch is
    micro-batch x processes x accumulation exactly; the engine shares any batch.
    """
    if processes > 1 and (found := _alone(run)):
        what, instead = found
        raise UserError(
            f"{what} in a training of one process, and this one has {processes}; give {instead}, "
            "or train with one."
        )
    if run.trainer == "engine":
        return
    own = method_settings(run.pft_method) if run.kind == "pt" else []
    for name in ("effective_batch_size", *(n for n in own if n == "kl_batch_size")):
        value = getattr(run.training, name)
        if value % processes:
            raise UserError(
                f"{name} {value} cannot be shared by {processes} processes: micro-batch x "
                f"processes x accumulation has to be exactly the batch. Give one that is a "
                f"multiple of {processes}, or a number of processes that divides {value}."
            )


def _alone(run: Any) -> tuple[str, str] | None:
    """What a run asks for that only a single process does, and what to give instead."""
    on_trl, p = run.trainer == "trl", run.pass_at_k if run.kind == "sft" else None
    if on_trl and run.model.backend_train == "unsloth":
        return "backend_train unsloth works", "--backend_train transformers"
    if p is None or not p.rules:
        return None
    if on_trl:
        return "--trainer trl measures pass@k", "--trainer engine"
    if p.pass_at_k_backend == "vllm":  # which would wait for all ranks of the training
        return "pass_at_k_backend vllm works", "--pass_at_k_backend hf"
    return None


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


def require_frozen(model: ModelLoadConfig, *, full: bool, merged: bool = False) -> None:
    """Raise UserError where weights that are held in 4 bits would be trained or merged."""
    if model.load_in_4bit and (full or merged):
        name, instead = ("full", "an adapter") if full else ("merge_parent", "the parent's adapter")
        raise UserError(
            f"{name} cannot be had with --load_in_4bit, whose weights stay as they are; train "
            f"{instead} (--{name} false), or leave out --load_in_4bit."
        )


def optimizer_name(optimizer: str, *, cuda: bool) -> str:
    """An optimizer of transformers; auto is adamw_8bit on CUDA, if bitsandbytes is installed."""
    if optimizer != "auto":
        return optimizer
    eight_bit = cuda and importlib.util.find_spec("bitsandbytes") is not None
    return "adamw_8bit" if eight_bit else "adamw_torch"


def engine_weights(shape: Shape, osft: OSFTConfig) -> Adapter:
    """The parameters that the engine keeps, and those that it trains."""
    if not osft.osft:
        return Adapter(saved=shape.parameters, trained=shape.parameters)
    return in_subspaces(shape, osft.osft_unfreeze_rank_ratio, osft.osft_target_patterns)


def state_bytes(optimizer: str, *, cuda: bool) -> int:
    """Bytes of an optimizer's state, a trained parameter: two moments of four bytes, or of one."""
    name = optimizer_name(optimizer, cuda=cuda)
    return 0 if name in ("sgd", "adafactor") else 2 if "8bit" in name else 8


def check_engine(
    compute: ComputeConfig, model: ModelLoadConfig, training: TrainingArgumentsConfig
) -> None:
    """Raise UserError for settings with which the engine cannot train."""
    fits = (compute.max_tokens_per_gpu or 0) >= model.max_seq_length
    longest = f"max_seq_length, {model.max_seq_length}, or more: every example fits one pass"
    require(compute, "max_tokens_per_gpu", fits, longest)
    if model.load_in_4bit or model.backend_train == "unsloth":
        name = "load_in_4bit" if model.load_in_4bit else "backend_train unsloth"
        raise UserError(
            f"{name} is for --trainer trl; the engine opens a model itself and trains all weights."
        )
    if training.optimizer not in ENGINE_OPTIMIZERS:
        raise UserError(
            f"optimizer is {training.optimizer}; the engine trains with AdamW: with --trainer "
            "engine use --optimizer auto."
        )
