"""SFT and preference runs as frozen dataclasses: settings, names, identity. No I/O beyond
collections.yaml.

`sft_config()` and `preference_config()` are the doors: they put together the defaults below, what
collections.yaml says of the model, and what was given. Two configs that would give the same weights
have the same hash; a run whose settings are all the model's defaults has the plain name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tuning import config as site
from tuning.data import train_dataset
from tuning.engine.run_config import pretrain_config
from tuning.flags import build, override, plain
from tuning.runs.errors import UserError
from tuning.runs.identity import digest, patience_label, settings, threshold_label
from tuning.runs.rundir import SHORT, Identity
from tuning.runs.stages import REMAINING

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


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The run that a preference run continues."""

    run_name: str = field(metadata=_FREE)
    """Its name before any directory was made."""
    hash: str
    """Its hash."""
    sweetspot: str | None = None
    """The label of its checkpoint to fork from, `ppl-2.0`; None: its final model."""
    total_data: int | None = None
    """The budget that both share; None where the size is given outright."""
    model_defaults: bool = field(default=True, metadata=_FREE)
    """Whether it differs from its model's defaults in nothing but sizes and sweetspot rules."""


class _Run:
    """What SFT and preference runs have in common."""

    kind: str

    @property
    def artifact(self) -> str:
        """`adapter` or `full`: the form of the model that the run leaves."""
        return "adapter"

    @property
    def hash(self) -> str:
        """Over everything that changes the result."""
        return digest({"kind": self.kind, "settings": settings(self)})

    def identity(self, run_name: str, parent: dict[str, Any] | None) -> Identity:
        """The identity under which the run's directory is claimed."""
        return Identity(
            run_name=run_name,
            kind=self.kind,
            hash=self.hash,
            hashed=settings(self),
            settings=plain(self),
            parent=parent,
            artifact=self.artifact,
        )

    def _suffixed(self, name: str, is_default: bool) -> str:
        return name if is_default else f"{name}-{self.hash[:SHORT]}"


@dataclass(frozen=True, kw_only=True)
class SFTRunConfig(_Run):
    """One supervised fine-tuning run."""

    kind = "sft"
    model: ModelLoadConfig
    dataset: DatasetConfig
    task: str = field(metadata=_FREE)
    lora: LoraConfig = LoraConfig()
    training: TrainingArgumentsConfig = TrainingArgumentsConfig()
    perplexity: PerplexityConfig = PerplexityConfig()

    @property
    def run_name(self) -> str:
        """`{model}_sft-{dataset}-{n}`, with `-{hash8}` behind unless all else is the default."""
        name = f"{self.model.label}_sft-{self.dataset.dataset}-{self.dataset.train_size}"
        return self._suffixed(name, settings(self) == settings(self.default()))

    def default(self) -> SFTRunConfig:
        """The same run with the defaults of its model."""
        return sft_config(
            model=self.model.model,
            dataset=self.dataset.dataset,
            task=self.task,
            train_size=self.dataset.train_size or 1,
        )

    @property
    def model_defaults(self) -> bool:
        """Whether nothing but sizes and sweetspot rules differs from the defaults of the model."""
        default = self.default()
        rules = replace(
            self.perplexity,
            perplexity_thresholds=default.perplexity.perplexity_thresholds,
            perplexity_patience=default.perplexity.perplexity_patience,
        )
        return settings(replace(self, perplexity=rules)) == settings(default)

    @property
    def rules(self) -> list[str]:
        """The labels of the sweetspots in the order given: thresholds, then patience rules."""
        return [
            *(threshold_label(value) for value in self.perplexity.perplexity_thresholds),
            *(
                patience_label(*parse_patience(rule))
                for rule in self.perplexity.perplexity_patience
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class PTRunConfig(_Run):
    """One preference run: from the base, from an SFT run, or from a sweetspot of one."""

    kind = "pt"
    model: ModelLoadConfig
    dataset: DatasetConfig
    task: str = field(metadata=_FREE)
    pft_method: str
    lora: LoraConfig = LoraConfig()
    training: DPOTrainingConfig = DPOTrainingConfig()
    parent: Parent | None = None

    @property
    def artifact(self) -> str:
        """A run that merged its parent leaves whole weights, any other an adapter."""
        return "full" if self.training.merge_parent else "adapter"

    @property
    def is_fork(self) -> bool:
        """Whether it starts from a sweetspot and takes the budget that is left."""
        return self.parent is not None and self.parent.sweetspot is not None

    @property
    def run_name(self) -> str:
        """The name; of a fork before its size is known."""
        return self.named(self.dataset.train_size)

    def named(self, train_size: int | None) -> str:
        """The name with the size that a fork turned out to have."""
        data = f"{self.dataset.dataset}-{REMAINING if train_size is None else train_size}"
        if self.parent is not None and self.parent.sweetspot is not None:
            fork = f"{self.model.label}_sweetspot-{self.parent.sweetspot}_{self.pft_method}-{data}"
            return self._suffixed(fork, self._is_default and self.parent.model_defaults)
        start = self.parent.run_name if self.parent else self.model.label
        method = "" if self.pft_method == "dpo" else f"_{self.pft_method}"
        return self._suffixed(f"{start}_pt-{data}{method}", self._is_default)

    @property
    def _is_default(self) -> bool:
        default = preference_config(
            model=self.model.model,
            dataset=self.dataset.dataset,
            task=self.task,
            pft_method=self.pft_method,
            train_size=self.dataset.train_size,
            parent=self.parent,
        )
        return settings(self) == settings(default)


SFT_PARTS: tuple[type, ...] = (
    ModelLoadConfig, LoraConfig, TrainingArgumentsConfig, PerplexityConfig,
)  # fmt: skip
PT_PARTS: tuple[type, ...] = (ModelLoadConfig, LoraConfig, DPOTrainingConfig)


def sft_config(
    *,
    model: str,
    dataset: str,
    task: str,
    train_size: int,
    values: Mapping[str, Any] | None = None,
) -> SFTRunConfig:
    """An SFT run: defaults, then collections.yaml, then `values` (flat names)."""
    chosen = _model_settings(model, ("sft",), SFT_PARTS) | dict(values or {})
    task = site.collections().task(task)
    return SFTRunConfig(
        model=_model(model, chosen),
        dataset=_dataset(dataset, task, "sft", train_size),
        task=task,
        lora=build(LoraConfig, chosen),
        training=_checked(build(TrainingArgumentsConfig, chosen)),
        perplexity=_rules(build(PerplexityConfig, chosen)),
    )


def preference_config(
    *,
    model: str,
    dataset: str,
    task: str,
    pft_method: str,
    train_size: int | None,
    parent: Parent | None = None,
    values: Mapping[str, Any] | None = None,
) -> PTRunConfig:
    """A preference run: defaults, then collections.yaml (pft, then the method), then `values`."""
    method = site.collections().method(pft_method)
    task = site.collections().task(task)
    chosen = _model_settings(model, ("pft", method), PT_PARTS) | dict(values or {})
    return PTRunConfig(
        model=_model(model, chosen),
        dataset=_dataset(dataset, task, "pt", train_size),
        task=task,
        pft_method=method,
        lora=build(LoraConfig, chosen),
        training=_checked(build(DPOTrainingConfig, chosen)),
        parent=parent,
    )


def model_config(model: str) -> ModelLoadConfig:
    """A base model with the defaults of SFT, for evaluating it as it is."""
    return _model(model, _model_settings(model, ("sft",), SFT_PARTS))


def _model_settings(model: str, stages: Sequence[str], parts: Sequence[type]) -> dict[str, Any]:
    entry = site.collections().model(model)
    chosen: dict[str, Any] = {}
    if entry.target_modules:
        chosen["target_modules"] = entry.target_modules
    if entry.full_modules:
        chosen["full_modules"] = entry.full_modules
    if entry.chat_template:
        chosen["chat_template"] = entry.chat_template
    for stage in stages:
        where = f"collections.yaml, models: {entry.name}: settings: {stage}"
        chosen |= override(parts, entry.settings.get(stage, {}), where)
    return chosen


def _model(name: str, chosen: Mapping[str, Any]) -> ModelLoadConfig:
    entry = site.collections().model(name)
    template = chosen.get("chat_template")
    if template and not (site.CHAT_TEMPLATES / f"{template}.jinja").exists():
        known = sorted(path.stem for path in site.CHAT_TEMPLATES.glob("*.jinja"))
        raise UserError(f"unknown chat template '{template}'; choose from: {', '.join(known)}.")
    return build(
        ModelLoadConfig,
        chosen,
        model=entry.path or name,
        source=entry.source,
        base_hash=pretrain_config(entry.from_run).hash if entry.from_run else None,
    )


def _dataset(name: str, task: str, kind: str, train_size: int | None) -> DatasetConfig:
    site.collections().dataset(name, task)
    if train_size is not None:
        train_dataset.require(name, train_dataset.POOL_OF_TYPE[kind], train_size, "train_size")
    return DatasetConfig(
        dataset=name, dataset_type=kind, version=train_dataset.version(name), train_size=train_size
    )


def _checked(training: TrainingArgumentsConfig) -> Any:
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


def _rules(perplexity: PerplexityConfig) -> PerplexityConfig:
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
