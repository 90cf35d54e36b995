"""How the stages of one base model are made, whatever experiment they belong to: pre-training, the
base, SFT runs, preference runs, and what is only evaluated.

Plans decide which stages there are; names, commands, phases and hashes come from here, so that the
same run is the same stage in every plan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tuning import config as site
from tuning.engine.run_config import pretrain_config
from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
from tuning.flags import command_line
from tuning.runs.errors import UserError
from tuning.runs.rundir import locate
from tuning.runs.stages import Stage
from tuning.training import parents
from tuning.training.config_training import (
    ModelLoadConfig,
    Parent,
    PTRunConfig,
    SFTRunConfig,
    model_config,
    preference_config,
    sft_config,
)


def check_experiment(name: str | None) -> None:
    """Raise UserError for a name that no folder should have."""
    if name and not re.fullmatch(r"\w[\w.@-]*", name):
        raise UserError(f"experiment '{name}' is no name; use letters, digits and . _ - @.")


def directory_name(config: SFTRunConfig | PTRunConfig) -> str:
    """The name of a run's directory, which is longer where another run has the plain one."""
    return locate(site.models_dir(), config.run_name, config.hash).name


@dataclass(frozen=True, kw_only=True)
class StageMaker:
    """Makes stages of one base model on one dataset with one choice of settings."""

    model: str
    dataset: str
    task: str
    do_inference: bool = False
    do_evaluation: bool = False
    model_values: Mapping[str, Any] = field(default_factory=dict)
    sft_values: Mapping[str, Any] = field(default_factory=dict)
    pft_values: Mapping[str, Any] = field(default_factory=dict)
    evaluation_values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluates(self) -> bool:
        """Whether models are sampled or scored at all."""
        return self.do_inference or self.do_evaluation

    @cached_property
    def sampling(self) -> PassAtKConfig:
        """How every model is sampled."""
        return sampling_config(self.model, self.evaluation_values)

    @cached_property
    def base(self) -> ModelLoadConfig:
        """The base model as it is loaded for an evaluation."""
        return model_config(self.model, self.model_values)

    def sft_run(self, size: int, rules: Mapping[str, Any] | None = None) -> SFTRunConfig:
        """SFT on `size` examples; `rules` are settings of its sweetspots."""
        return sft_config(
            model=self.model, dataset=self.dataset, task=self.task, train_size=size,
            values={**self.model_values, **self.sft_values, **(rules or {})},
        )  # fmt: skip

    def preference_run(
        self, method: str, size: int | None, parent: Parent | None = None
    ) -> PTRunConfig:
        """Preference tuning from a parent, or from the base; a fork has no size yet."""
        return preference_config(
            model=self.model, dataset=self.dataset, task=self.task, pft_method=method,
            train_size=size, parent=parent, values={**self.model_values, **self.pft_values},
        )  # fmt: skip

    def pretrain_stage(self) -> Stage | None:
        """The run that makes the base; None for a model from elsewhere."""
        entry = site.collections().model(self.model)
        if entry.from_run is None:
            return None
        config = pretrain_config(entry.from_run)
        return Stage(
            name=locate(site.models_dir(), config.run_name, config.hash).name, role="pretrain",
            hash=config.hash, phases=("train",), wide=True,
            command=("run_pretrain.py", "--model", entry.from_run), seed=config.training.seed,
        )  # fmt: skip

    def base_stage(self, pretrained: str | None, taken: Collection[str]) -> Stage:
        """The evaluation of the base; `pretrained` is the stage that makes it."""
        return self.evaluated_stage(
            self.base.label, "base", self.base.identity_hash,
            ("--model", self.model, *parents.base_flags(self.base)), taken,
            parents=(pretrained,) if pretrained else (),
        )  # fmt: skip

    def evaluated_stage(
        self,
        name: str,
        role: str,
        hash_: str,
        where: tuple[str, ...],
        taken: Collection[str],
        **more: Any,
    ) -> Stage:
        """The evaluation of what another stage has trained; its name is none of those `taken`."""
        data = ("--dataset", self.dataset, "--task", self.task)
        command = ("run_inference.py", *where, *data, *self._evaluation_flags())
        return Stage(
            name=f"{name}-{role}" if name in taken else name, role=role, hash=hash_, trains=False,
            artifact=name, command=command if self.evaluates else (),
            **self._evaluation(name, hash_, train=False), **more,
        )  # fmt: skip

    def sft_stage(
        self,
        role: str,
        config: SFTRunConfig,
        base: str | None,
        *,
        train: bool,
        evaluate: bool = True,
        **more: Any,
    ) -> Stage:
        """An SFT run; `base` is the stage that makes its base."""
        return self._trained(
            directory_name(config), role, config.hash, ("run_sft.py", *parents.sft_flags(config)),
            train=train, evaluate=evaluate, parents=(base,) if base else (),
            train_size=config.dataset.train_size, seed=config.training.seed, **more,
        )  # fmt: skip

    def preference_stage(
        self,
        role: str,
        config: PTRunConfig,
        parent: str | None,
        *,
        total_data: int,
        train: bool = True,
    ) -> Stage:
        """A preference run; `parent` is the stage that it waits for, and continues if it has a
        parent.
        """
        start = config.parent
        is_fork = start is not None and start.sweetspot is not None
        return self._trained(
            config.run_name if is_fork else directory_name(config), role, config.hash,
            ("run_dpo.py", *parents.preference_flags(config)), train=train, evaluate=True,
            parents=(parent,) if parent else (), parent=parent if start else None,
            sweetspot=start.sweetspot if start else None, pft_method=config.pft_method,
            train_size=config.dataset.train_size, total_data=total_data,
            seed=config.training.seed,
        )  # fmt: skip

    def _trained(
        self,
        name: str,
        role: str,
        hash_: str,
        command: tuple[str, ...],
        *,
        train: bool,
        evaluate: bool,
        **more: Any,
    ) -> Stage:
        """A stage that trains a run and evaluates it."""
        flags = (
            *(("--do_training",) if train else ()),
            *(self._evaluation_flags() if evaluate else ()),
        )
        return Stage(
            name=name, role=role, hash=hash_, command=(*command, *flags),
            **self._evaluation(name, hash_, train=train, evaluate=evaluate), **more,
        )  # fmt: skip

    def _evaluation_flags(self) -> tuple[str, ...]:
        default = sampling_config(self.model)
        phases = [
            *(["--do_inference"] if self.do_inference else []),
            *(["--do_evaluation"] if self.do_evaluation else []),
        ]
        return (*phases, *(command_line([(self.sampling, default)]) if phases else []))

    def _evaluation(
        self, artifact: str, hash_: str, *, train: bool, evaluate: bool = True
    ) -> dict[str, Any]:
        config = evaluation_config(
            model=self.model, artifact=artifact, artifact_hash=hash_, dataset=self.dataset,
            task=self.task, sampling=self.sampling,
        )  # fmt: skip
        phases = [
            *(["train"] if train else []),
            *(["infer"] if self.do_inference and evaluate else []),
            *(["evaluate"] if self.do_evaluation and evaluate else []),
        ]
        return {
            "phases": tuple(phases), "task": config.task, "evaluation_hash": config.hash,
            "evaluation_suffix": config.suffix,
        }  # fmt: skip
