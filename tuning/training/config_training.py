"""SFT and preference runs as frozen dataclasses: settings, names, identity. No I/O beyond
collections.yaml.

`sft_config()` and `preference_config()` build them from the defaults, what collections.yaml says of
the model, and what was given. How a run is computed is not hashed, nor are the settings of another
method or trainer (`setting(hashed=...)`); a run whose settings are all the model's defaults has the
plain name. A config is complete in itself: once built, nothing of it is looked up in
collections.yaml again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tuning import config as site
from tuning import methods
from tuning.data.budget import total_steps
from tuning.data.config import DatasetConfig, dataset_config
from tuning.engine.config import ComputeConfig, LossConfig, loss_name
from tuning.engine.run_config import PretrainRunConfig
from tuning.evaluation.prompts import require_problems
from tuning.flags import build
from tuning.plan import REMAINING
from tuning.runs.errors import UserError
from tuning.runs.rundir import SHORT, RunDirectory
from tuning.settings import RunConfig, setting
from tuning.sweetspots.config import PassAtKStoppingConfig, PerplexityConfig
from tuning.sweetspots.monitor import Monitors, Spending
from tuning.sweetspots.rules import Rule
from tuning.training.base_models import load_config, settings_of_model
from tuning.training.config import (
    DPOTrainingConfig,
    EngineSFTConfig,
    TrainingArgumentsConfig,
    check_engine,
    compute_config,
    refuse_adapter,
    refuse_unused,
    require_frozen,
    require_whole_micro_batches,
    used,
)
from tuning.training.naming import shown, with_seed
from tuning.training.reads import require_rows
from tuning.training.sweetspot_rules import pass_at_k_rules, perplexity_rules, with_rules_of
from tuning.weights.config import LoraConfig, ModelLoadConfig


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The run that a preference run continues."""

    run_name: str = setting(hashed=False)
    """The name of its directory."""
    hash: str
    """Its hash."""
    sweetspot: str | None = None
    """The label of its checkpoint to fork from, `ppl-2.0`; None: its final model."""
    total_data: int | None = None
    """The budget that both share; None where the size is given outright."""
    is_default: bool = setting(True, hashed=False)
    """Whether it differs from its model's defaults in nothing but sizes and sweetspot rules."""
    lora: LoraConfig | None = setting(None, hashed=False)
    """Its adapter, which a preference run trains further; None where it left full weights."""


@dataclass(frozen=True, kw_only=True)
class SFTRunConfig(RunConfig):
    """One supervised fine-tuning run."""

    kind = "sft"
    model: ModelLoadConfig
    dataset: DatasetConfig
    task: str = setting(hashed=lambda part, run: bool(run.pass_at_k.rules))
    """It grades the answers of which pass@k is measured."""
    lora: LoraConfig = setting(hashed=lambda part, run: run.trainer == "trl")
    training: TrainingArgumentsConfig
    loss: LossConfig = setting(default_factory=LossConfig, before=LossConfig())
    perplexity: PerplexityConfig
    pass_at_k: PassAtKStoppingConfig = setting(
        default_factory=PassAtKStoppingConfig, before=PassAtKStoppingConfig()
    )
    compute: ComputeConfig = setting(default_factory=ComputeConfig)
    engine: EngineSFTConfig = setting(
        default_factory=EngineSFTConfig, hashed=lambda part, run: run.trainer == "engine"
    )
    is_default: bool = setting(True, hashed=False)
    """Whether all that its name does not show is the model's default."""
    named_seed: int | None = setting(None, hashed=False)
    """The seed in its name; None if it is the model's default."""
    is_default_but_rules: bool = setting(True, hashed=False)
    """The same, the sweetspot rules aside."""

    def __post_init__(self) -> None:
        if self.trainer == "engine":
            check_engine(self.compute, self.model, self.training)
        else:
            require_frozen(self.model, full=self.lora.full)
            require_whole_micro_batches(self.compute, self.training.effective_batch_size)
            if self.model.backend_train == "unsloth" and self.samples:
                raise UserError(
                    "backend_train unsloth cannot sample from the model in training, as "
                    "pass_at_k_backend hf does; give --pass_at_k_backend vllm, or --backend_train "
                    "auto."
                )

    @property
    def samples(self) -> bool:
        """Whether pass@k is measured by sampling from the model in training itself."""
        return bool(self.pass_at_k.rules) and self.pass_at_k.pass_at_k_backend == "hf"

    @property
    def train_size(self) -> int:
        """SFT examples."""
        assert self.dataset.train_size is not None
        return self.dataset.train_size

    @property
    def steps(self) -> int:
        """Optimizer steps, unless sweetspot rules end the run early."""
        t = self.training
        return total_steps(self.train_size, t.effective_batch_size, t.num_train_epochs)

    @property
    def trainer(self) -> str:
        """`trl` or `engine`."""
        return self.engine.trainer

    @property
    def artifact_form(self) -> str:
        """The engine trains, and leaves, full weights; TRL where that is asked for."""
        return "full" if self.trainer == "engine" or self.lora.full else "adapter"

    @property
    def run_name(self) -> str:
        """`{model}_sft-{dataset}-{n}`, with `_seed-{seed}` if that is not the default, followed by
        `-{hash8}` unless all else is.
        """
        data = f"{self.dataset.dataset}-{self.train_size}"
        name = with_seed(f"{self.model.label}_sft-{data}", self.named_seed)
        return name if self.is_default else f"{name}-{self.hash[:SHORT]}"

    def default(self) -> SFTRunConfig:
        """The same run with the defaults of its model."""
        return sft_config(
            model=self.model.model,
            dataset=self.dataset.dataset,
            task=self.task,
            train_size=self.train_size,
        )

    @property
    def rules(self) -> list[Rule]:
        """The rules of its sweetspots."""
        return [*self.perplexity.rules, *self.pass_at_k.rules]

    def monitors(self, directory: RunDirectory) -> Monitors:
        """What watches its rules while it trains in a directory."""
        return Monitors(self.perplexity, self.pass_at_k, self.spending, directory, self.hash)

    @property
    def spending(self) -> Spending:
        """Examples seen and used by optimizer steps."""
        batch = self.training.effective_batch_size
        return Spending(train_size=self.train_size, batch_size=batch)


@dataclass(frozen=True, kw_only=True)
class PTRunConfig(RunConfig):
    """One preference run: from the base, from an SFT run, or from a sweetspot of one."""

    kind = "pt"
    trainer = "trl"
    model: ModelLoadConfig
    dataset: DatasetConfig
    task: str = setting(hashed=False)
    pft_method: str
    lora: LoraConfig = setting(hashed=lambda part, run: not run.continues_adapter)
    training: DPOTrainingConfig
    compute: ComputeConfig = setting(default_factory=ComputeConfig)
    parent: Parent | None = None
    is_default: bool = setting(True, hashed=False)
    """Whether all that its name does not show is the model's default."""
    named_seed: int | None = setting(None, hashed=False)
    """The seed in its name; None if it is the model's default."""

    def __post_init__(self) -> None:
        method = methods.method(self.pft_method)
        method.check(self.training)
        if self.model.backend_train == "unsloth" and not method.unsloth:
            raise UserError(
                f"backend_train unsloth is not for {method.name}; give --backend_train auto, which "
                "takes it where it can."
            )
        require_frozen(self.model, full=self.lora.full, merged=self.training.merge_parent)
        if "micro_batch_size" in used(self.pft_method):
            require_whole_micro_batches(self.compute, self.training.effective_batch_size)

    def batch(self, train_size: int) -> int:
        """Examples of an optimizer step, of `train_size` in all: a fork may have few."""
        return min(self.training.effective_batch_size, train_size)

    def steps(self, train_size: int) -> int:
        """Optimizer steps on `train_size` examples."""
        batch, epochs = self.batch(train_size), self.training.num_train_epochs
        if methods.method(self.pft_method).whole_batches:
            return max(1, round(epochs * (train_size // batch)))
        return total_steps(train_size, batch, epochs)

    @property
    def artifact_form(self) -> str:
        """A run that trained all weights, or merged its parent, leaves full weights, any other an
        adapter.
        """
        return "full" if self.lora.full or self.training.merge_parent else "adapter"

    @property
    def continues_adapter(self) -> bool:
        """Whether the parent's adapter is trained further, and not a new one or all weights."""
        has_adapter = self.parent is not None and self.parent.lora is not None
        return has_adapter and self.artifact_form == "adapter"

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
            name = f"{self.model.label}_sweetspot-{self.parent.sweetspot}_{self.pft_method}-{data}"
            plain = self.is_default and self.parent.is_default
        else:
            start = self.parent.run_name if self.parent else self.model.label
            method = "" if self.pft_method == "dpo" else f"_{self.pft_method}"
            name, plain = f"{start}_pt-{data}{method}", self.is_default
        name = with_seed(name, self.named_seed)
        return name if plain else f"{name}-{self.hash[:SHORT]}"

    def default(self) -> PTRunConfig:
        """The same run with the defaults of its model, which need not fit its rows."""
        return _preference(
            self.model.model,
            self.dataset.dataset,
            self.task,
            self.pft_method,
            self.dataset.train_size,
            self.parent,
            {},
        )


RUN_CONFIGS: dict[str, type[RunConfig]] = {
    "pretrain": PretrainRunConfig,
    "sft": SFTRunConfig,
    "pft": PTRunConfig,
}
"""The run config of each kind of stage that trains."""
SFT_PARTS: tuple[type, ...] = (
    ModelLoadConfig,
    LoraConfig,
    TrainingArgumentsConfig,
    LossConfig,
    PerplexityConfig,
    PassAtKStoppingConfig,
    ComputeConfig,
    EngineSFTConfig,
)
PT_PARTS: tuple[type, ...] = (ModelLoadConfig, LoraConfig, DPOTrainingConfig, ComputeConfig)


def sft_config(
    *,
    model: str,
    dataset: str,
    task: str,
    train_size: int,
    values: Mapping[str, Any] | None = None,
    cuda: bool | None = None,
) -> SFTRunConfig:
    """An SFT run: defaults, then collections.yaml, then `values` (flat names).

    `cuda`: whether it will train on CUDA; None: as this machine has it.
    """
    values = dict(values or {})
    chosen = settings_of_model(model, ("sft",), SFT_PARTS) | values
    trainer = chosen.get("trainer", "trl")
    lora = build(LoraConfig, chosen)
    refuse_unused(trainer, values)
    if lora.full:
        refuse_adapter(values)
    task = site.collections().task(task)
    training, loss = build(TrainingArgumentsConfig, chosen), build(LossConfig, chosen)
    made = SFTRunConfig(
        model=load_config(model, chosen),
        dataset=dataset_config(dataset, task, "sft", train_size),
        task=task,
        lora=lora,
        training=training,
        loss=replace(loss, loss=loss_name(loss.loss)),
        perplexity=perplexity_rules(chosen),
        pass_at_k=pass_at_k_rules(chosen, values, cuda),
        compute=compute_config(trainer, chosen, training.effective_batch_size),
        engine=build(EngineSFTConfig, chosen),
    )
    if made.pass_at_k.rules:
        require_problems(made.dataset.entry, task, made.pass_at_k.pass_at_k_prompts)
    if not values:
        return made
    default = made.default()
    ruled = replace(
        default,
        perplexity=with_rules_of(made.perplexity, default.perplexity),
        pass_at_k=with_rules_of(made.pass_at_k, default.pass_at_k),
    )
    strictly = made.hashed == ruled.hashed
    return replace(made, is_default_but_rules=strictly, **shown(made, default))


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
    made = _preference(model, dataset, task, pft_method, train_size, parent, values or {})
    require_rows(made.dataset, made.pft_method, made.task, made.training)
    return made if not values else replace(made, **shown(made, made.default()))


def _preference(
    model: str,
    dataset: str,
    task: str,
    pft_method: str,
    train_size: int | None,
    parent: Parent | None,
    values: Mapping[str, Any],
) -> PTRunConfig:
    """The run, whether the rows are such that it could be trained or not."""
    method = site.collections().method(pft_method)
    task = site.collections().task(task)
    refuse_unused(method, values)
    chosen = settings_of_model(model, ("pft", method), PT_PARTS) | dict(values)
    lora, training = build(LoraConfig, chosen), build(DPOTrainingConfig, chosen)
    if lora.full:
        refuse_adapter(values)
    elif parent is not None and parent.lora is not None and not training.merge_parent:
        _require_same_adapter(lora, parent.lora, values)
        lora = parent.lora
    return PTRunConfig(
        model=load_config(model, chosen),
        dataset=dataset_config(dataset, task, "pt", train_size),
        task=task,
        pft_method=method,
        lora=lora,
        training=training,
        compute=compute_config(method, chosen, training.effective_batch_size),
        parent=parent,
    )


def _require_same_adapter(asked: LoraConfig, continued: LoraConfig, given: Iterable[str]) -> None:
    """Raise UserError for a setting of an adapter, asked for by name, that differs from that of the
    adapter which the run continues.
    """
    for name in (entry.name for entry in fields(LoraConfig) if entry.name in given):
        was, wanted = getattr(continued, name), getattr(asked, name)
        if was != wanted:
            raise UserError(
                f"{name} is {wanted}, and the run continues the adapter of its SFT run, which has "
                f"{was}; leave it out, or give --merge_parent to train an adapter of its own."
            )


def model_config(model: str, values: Mapping[str, Any] | None = None) -> ModelLoadConfig:
    """A base model with the defaults of SFT, for evaluating it as it is."""
    chosen = settings_of_model(model, ("sft",), SFT_PARTS) | dict(values or {})
    chosen.pop("backend_train", None)
    return load_config(model, chosen)


def validation_size(model: str, values: Mapping[str, Any] | None = None) -> int:
    """The rows of the validation pool on which SFT of a model measures its perplexity."""
    chosen = settings_of_model(model, ("sft",), SFT_PARTS) | dict(values or {})
    return build(PerplexityConfig, chosen).validation_size
