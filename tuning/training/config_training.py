"""SFT and preference runs as frozen dataclasses: settings, names, identity. No I/O beyond
collections.yaml.

`sft_config()` and `preference_config()` are the doors: they put together the defaults of
config_parts.py, what collections.yaml says of the model, and what was given. Two configs that would
give the same weights have the same hash; a run whose settings are all the model's defaults has the
plain name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.engine.run_config import pretrain_config
from tuning.flags import build, override, plain
from tuning.runs.content import weights_hash
from tuning.runs.errors import UserError
from tuning.runs.identity import digest, patience_label, settings, threshold_label
from tuning.runs.rundir import SHORT, Identity
from tuning.runs.stages import REMAINING
from tuning.training.config_parts import (
    DatasetConfig,
    DPOTrainingConfig,
    EngineSFTConfig,
    LoraConfig,
    ModelLoadConfig,
    PerplexityConfig,
    TrainingArgumentsConfig,
    check_engine,
    checked_lora,
    checked_model,
    checked_preference,
    checked_rules,
    checked_training,
    parse_patience,
)

_FREE: dict[str, Any] = {"hashed": False}


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
    lora: LoraConfig | None = field(default=None, metadata=_FREE)
    """Its adapter, which a preference run trains further; None where it left whole weights."""


class _Run:
    """What SFT and preference runs have in common."""

    kind: str

    @property
    def artifact(self) -> str:
        """`adapter` or `full`: the form of the model that the run leaves."""
        return "adapter"

    @property
    def hashed(self) -> dict[str, Any]:
        """The settings that change the result."""
        found: dict[str, Any] = settings(self)
        return found

    @property
    def hash(self) -> str:
        """Over everything that changes the result."""
        return digest({"kind": self.kind, "settings": self.hashed})

    def identity(self, run_name: str, parent: dict[str, Any] | None) -> Identity:
        """The identity under which the run's directory is claimed."""
        return Identity(
            run_name=run_name,
            kind=self.kind,
            hash=self.hash,
            hashed=self.hashed,
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
    lora: LoraConfig
    training: TrainingArgumentsConfig
    perplexity: PerplexityConfig
    engine: EngineSFTConfig = field(default_factory=EngineSFTConfig)

    @property
    def trainer(self) -> str:
        """`trl` or `engine`."""
        return self.engine.trainer

    @property
    def artifact(self) -> str:
        """The engine trains, and leaves, whole weights."""
        return "full" if self.trainer == "engine" else "adapter"

    @property
    def hashed(self) -> dict[str, Any]:
        """The settings that change the result: not those of the other trainer."""
        found: dict[str, Any] = settings(self)
        engine = found.pop("engine")
        if self.trainer == "engine":
            del found["lora"], found["training"]["optimizer"]
            if not self.engine.osft:
                del engine["osft_unfreeze_rank_ratio"]
            found["engine"] = engine
        return found

    @property
    def run_name(self) -> str:
        """`{model}_sft-{dataset}-{n}`, with `-{hash8}` behind unless all else is the default."""
        name = f"{self.model.label}_sft-{self.dataset.dataset}-{self.dataset.train_size}"
        return self._suffixed(name, self.hashed == self.default().hashed)

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
        return replace(self, perplexity=rules).hashed == default.hashed

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
    lora: LoraConfig
    training: DPOTrainingConfig
    parent: Parent | None = None

    @property
    def artifact(self) -> str:
        """A run that merged its parent leaves whole weights, any other an adapter."""
        return "full" if self.training.merge_parent else "adapter"

    @property
    def hashed(self) -> dict[str, Any]:
        """The settings that change the result: not those of other preference methods."""
        found: dict[str, Any] = settings(self)
        for entry in fields(DPOTrainingConfig):
            if self.pft_method not in entry.metadata.get("methods", (self.pft_method,)):
                found["training"].pop(entry.name, None)
        if self.continues_adapter:
            del found["lora"]
        return found

    @property
    def continues_adapter(self) -> bool:
        """Whether the parent's adapter is trained further, and not a new one."""
        has_adapter = self.parent is not None and self.parent.lora is not None
        return has_adapter and not self.training.merge_parent

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
        return self.hashed == default.hashed


SFT_PARTS: tuple[type, ...] = (
    ModelLoadConfig, LoraConfig, TrainingArgumentsConfig, PerplexityConfig, EngineSFTConfig,
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
    engine, training = build(EngineSFTConfig, chosen), build(TrainingArgumentsConfig, chosen)
    loaded = _model(model, chosen)
    check_engine(engine, loaded, training, values or ())
    return SFTRunConfig(
        model=loaded,
        dataset=_dataset(dataset, task, "sft", train_size),
        task=task,
        lora=checked_lora(build(LoraConfig, chosen)),
        training=checked_training(training, splits=engine.trainer == "trl"),
        perplexity=checked_rules(build(PerplexityConfig, chosen)),
        engine=engine,
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
    lora = checked_lora(build(LoraConfig, chosen))
    training = checked_preference(build(DPOTrainingConfig, chosen), method)
    if parent is not None and parent.lora is not None and not training.merge_parent:
        lora = parent.lora
    return PTRunConfig(
        model=_model(model, chosen),
        dataset=_dataset(dataset, task, "pt", train_size),
        task=task,
        pft_method=method,
        lora=lora,
        training=training,
        parent=parent,
    )


def model_config(model: str, values: Mapping[str, Any] | None = None) -> ModelLoadConfig:
    """A base model with the defaults of SFT, for evaluating it as it is."""
    chosen = _model_settings(model, ("sft",), SFT_PARTS) | dict(values or {})
    return _model(model, chosen)


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
    key = name if name in site.collections().models else entry.path or name
    return checked_model(
        build(
            ModelLoadConfig,
            chosen,
            model=key,
            source=entry.source,
            base_hash=_base_hash(entry),
        )
    )


def _base_hash(entry: site.ModelEntry) -> str | None:
    """The hash of the run that makes a base model, or of the files of a local one."""
    if entry.from_run:
        return pretrain_config(entry.from_run).hash
    return weights_hash(Path(entry.path)) if entry.path else None


def _dataset(name: str, task: str, kind: str, train_size: int | None) -> DatasetConfig:
    site.collections().dataset(name, task)
    if train_size is not None:
        train_dataset.require(name, train_dataset.POOL_OF_TYPE[kind], train_size, "train_size")
    return DatasetConfig(
        dataset=name,
        dataset_type=kind,
        version=train_dataset.version(name, *train_dataset.READ_BY_TYPE[kind]),
        train_size=train_size,
    )
