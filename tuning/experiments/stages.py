"""Makes the stages of one base model for every kind of experiment: pre-training, the base, SFT,
preference tuning, and evaluations alone.

The planners choose the stages; names, configs, phases and hashes come from here, so that the same
run is the same stage in every plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.engine.run_config import pretrain_config
from tuning.evaluation.config import (
    EvaluationRunConfig,
    PassAtKConfig,
    artifact_hash,
    artifact_name,
    evaluation_config,
    sampling_config,
)
from tuning.evaluation.prompts import require_test_pool
from tuning.experiments.choices import RULES, Choices
from tuning.flags import plain
from tuning.phases.before_after import before_after_config
from tuning.plan import Stage
from tuning.runs.rundir import locate
from tuning.training.config_training import (
    Parent,
    PTRunConfig,
    SFTRunConfig,
    model_config,
    preference_config,
    sft_config,
    validation_size,
)
from tuning.weights.config import ModelLoadConfig


def directory_name(config: SFTRunConfig | PTRunConfig) -> str:
    """The name of a run directory; with a hash appended if another run has the plain name."""
    return locate(site.models_dir(), config.run_name, config.hash).name


@dataclass(frozen=True, kw_only=True)
class StageMaker:
    """Makes stages of one base model from one set of choices."""

    model: str
    choices: Choices
    seed: Mapping[str, int] = field(default_factory=dict)
    """`{"seed": n}` for both SFT and preference tuning; empty: their defaults."""

    @cached_property
    def sampling(self) -> PassAtKConfig:
        """How every model is sampled."""
        c = self.choices
        return sampling_config(self.model, c.evaluation_values, cuda=c.cuda)

    @cached_property
    def base(self) -> ModelLoadConfig:
        """The base model as it is loaded for an evaluation."""
        return model_config(self.model, self.choices.model_values)

    @property
    def _autotune(self) -> dict[str, Any] | None:
        """How to tune a training, as a stage carries it."""
        search = self.choices.autotune
        return None if search is None else plain(search)

    def _before_after(self, run: SFTRunConfig | PTRunConfig, *, train: bool) -> dict[str, Any]:
        """What to measure before and after a training, as the fields of a stage."""
        c = self.choices
        if c.held_out is None or not train:
            return {}
        sampled = self.sampling if c.do_inference and c.do_evaluation else None
        size = validation_size(self.model, c.sft_values)
        config = before_after_config(run, c.held_out, sampled, size)
        return {"before_after": plain(config), "measure_hash": config.hash}

    def require_test_pool(self) -> None:
        """Raise UserError unless the test pool has enough prompts, and they can be graded: where
        models are evaluated, or prompts are asked for.
        """
        collections, prompts = site.collections(), self.sampling.prompts
        entry = collections.dataset(self.choices.dataset)
        if self.choices.evaluates:
            require_test_pool(entry, collections.task(self.choices.task), prompts)
        elif "prompts" in self.choices.evaluation_values:
            train_dataset.require(entry, "test", prompts, "prompts")

    def sft_run(self, size: int, rules: Mapping[str, Any] | None = None) -> SFTRunConfig:
        """The config of SFT on `size` examples; `rules` replaces the settings of its sweetspots."""
        c = self.choices
        chosen = {k: v for k, v in c.sft_values.items() if rules is None or k not in RULES}
        return sft_config(
            model=self.model,
            dataset=c.dataset,
            task=c.task,
            train_size=size,
            values={**c.model_values, **self.seed, **chosen, **(rules or {})},
            cuda=c.cuda,
        )

    def preference_run(
        self, method: str, size: int | None, parent: Parent | None = None
    ) -> PTRunConfig:
        """The config of preference tuning from a parent or the base; None as `size` of a fork."""
        c = self.choices
        return preference_config(
            model=self.model,
            dataset=c.dataset,
            task=c.task,
            pft_method=method,
            train_size=size,
            parent=parent,
            values={**c.model_values, **self.seed, **c.pft_values_of(method)},
        )

    def pretrain_stage(self) -> Stage | None:
        """The pre-training of the base; None for a model that is not pre-trained here."""
        entry = site.collections().model(self.model)
        if entry.from_run is None:
            return None
        config = pretrain_config(entry.from_run)
        return Stage(
            name=locate(site.models_dir(), config.run_name, config.hash).name,
            role="pretrain",
            hash=config.hash,
            script="run_pretrain.py",
            run=plain(config),
            phases=("train",),
            autotune=self._autotune,
            wide=True,
            joinable=True,
            seed=config.training.seed,
        )

    def base_stage(self, pretrained: str | None, taken: Collection[str]) -> Stage:
        """The evaluation of the base; `pretrained` is the stage that makes it."""
        parents = (pretrained,) if pretrained else ()
        return self._evaluated("base", self.base, taken, parents=parents)

    def sweetspot_stage(
        self, sft: SFTRunConfig, run: str, label: str, taken: Collection[str]
    ) -> Stage:
        """The evaluation of a sweetspot of an SFT run; `run` names its directory."""
        return self._evaluated(
            "sweetspot", sft.model, taken, run, sft.hash, label, parents=(run,), parent=run
        )

    def _evaluated(
        self,
        role: str,
        base: ModelLoadConfig,
        taken: Collection[str],
        run: str | None = None,
        run_hash: str | None = None,
        sweetspot: str | None = None,
        **more: Any,
    ) -> Stage:
        """An evaluation alone; `-{role}` is appended to its name if that is in `taken`."""
        name = artifact_name(base, run, sweetspot)
        config = self._evaluation(base, run=run, run_hash=run_hash, sweetspot=sweetspot)
        return Stage(
            name=f"{name}-{role}" if name in taken else name,
            role=role,
            hash=artifact_hash(base, run_hash, sweetspot),
            trains=False,
            artifact=name,
            script="run_inference.py",
            sweetspot=sweetspot,
            **self._phases(config, train=False),
            **more,
        )

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
        name = directory_name(config)
        evaluation = self._evaluation(config.model, run=name, run_hash=config.hash)
        measured = self._before_after(config, train=train)
        return Stage(
            name=name,
            role=role,
            hash=config.hash,
            script="run_sft.py",
            run=plain(config),
            joinable=config.trainer == "engine",
            autotune=self._autotune if train else None,
            parents=(base,) if base else (),
            train_size=config.train_size,
            seed=config.training.seed,
            **self._phases(evaluation, train=train, evaluate=evaluate or bool(measured)),
            **measured,
            **more,
        )

    def preference_stage(
        self,
        role: str,
        config: PTRunConfig,
        parent: str | None,
        *,
        total_data: int,
        train: bool = True,
    ) -> Stage:
        """A preference run; `parent` is the stage that it waits for: that of its parent run, or of
        the pre-training of the base.
        """
        name = config.run_name if config.is_fork else directory_name(config)
        evaluation = self._evaluation(config.model, run=name, run_hash=config.hash)
        return Stage(
            name=name,
            role=role,
            hash=config.hash,
            script="run_dpo.py",
            run=plain(config),
            parents=(parent,) if parent else (),
            parent=parent if config.parent else None,
            sweetspot=config.parent.sweetspot if config.parent else None,
            pft_method=config.pft_method,
            autotune=self._autotune if train else None,
            train_size=config.dataset.train_size,
            total_data=total_data,
            seed=config.training.seed,
            **self._phases(evaluation, train=train),
            **self._before_after(config, train=train),
        )

    def _evaluation(self, base: ModelLoadConfig, **which: Any) -> EvaluationRunConfig | None:
        """None where nothing is evaluated, and nothing could be: there is no test pool."""
        c = self.choices
        entry = site.collections().dataset(c.dataset)
        if not c.evaluates and not train_dataset.has_pool(entry, "test"):
            return None
        return evaluation_config(
            base, dataset=c.dataset, task=c.task, sampling=self.sampling, **which
        )

    def _phases(
        self, config: EvaluationRunConfig | None, *, train: bool, evaluate: bool = True
    ) -> dict[str, Any]:
        """The fields of a stage that describe its phases and its evaluation, if it can have one."""
        phases = [
            *(["train"] if train else []),
            *(["infer"] if self.choices.do_inference and evaluate else []),
            *(["evaluate"] if self.choices.do_evaluation and evaluate else []),
            *(["measure"] if self.choices.held_out and train else []),
        ]
        if config is None:
            return {"phases": tuple(phases), "task": site.collections().task(self.choices.task)}
        return {
            "phases": tuple(phases),
            "task": config.task,
            "evaluation": plain(config),
            "evaluation_hash": config.hash,
            "evaluation_suffix": config.suffix,
        }
