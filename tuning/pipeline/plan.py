"""The sweetspot experiment as a list of stages: from what a person wants to what is to be run, in
order.

    base, SFT with sweetspots, a fork a sweetspot and method with the budget that is left,
    SFT on the whole budget, preference tuning on the whole budget

Nothing here trains, imports torch or writes; run directories are only looked at for the names that
are taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.engine.run_config import PretrainRunConfig, pretrain_config
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.flags import command_line
from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.runs.rundir import locate
from tuning.runs.stages import Plan, Stage
from tuning.runs.sweetspot import sweetspot_hash, sweetspot_name
from tuning.training import parents
from tuning.training.config_parts import check_thresholds
from tuning.training.config_training import (
    PTRunConfig,
    SFTRunConfig,
    model_config,
    preference_config,
    sft_config,
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a person asks of a sweetspot experiment."""

    model: str
    dataset: str
    task: str
    total_data: int
    sft_data: int
    thresholds: tuple[float, ...]
    patience: tuple[str, ...] = ()
    early_stop: bool = True
    methods: tuple[str, ...] = ("dpo",)
    do_sft: bool = False
    do_dpo: bool = False
    do_inference: bool = False
    do_evaluation: bool = False
    references: bool = True
    experiment: str | None = None
    model_values: Mapping[str, Any] = field(default_factory=dict)
    sft_values: Mapping[str, Any] = field(default_factory=dict)
    pft_values: Mapping[str, Any] = field(default_factory=dict)
    evaluation_values: Mapping[str, Any] = field(default_factory=dict)


def sweetspot_plan(wanted: Wanted) -> Plan:
    """The stages of a sweetspot experiment in order; UserError where it cannot be."""
    return _Planner(wanted).plan()


class _Planner:
    """Builds the stages one kind after the other; each knows its parents by name."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        _check(wanted)
        self.sampling = sampling_config(wanted.model, wanted.evaluation_values)
        self.model = model_config(wanted.model, wanted.model_values)
        self.stages: list[Stage] = []
        train_dataset.require(wanted.dataset, "test", self.sampling.prompts, "prompts")
        self.evaluates = wanted.do_inference or wanted.do_evaluation
        rules = {
            "perplexity_thresholds": wanted.thresholds,
            "perplexity_patience": wanted.patience,
            "early_stop": wanted.early_stop,
        }
        self.sft = self._sft(wanted.sft_data, rules)
        self.sft_name = locate(site.models_dir(), self.sft.run_name, self.sft.hash).name

    def plan(self) -> Plan:
        w = self.wanted
        base = self._pretrain()
        self._base(base)
        self._add_sft("sft", self.sft, base, train=w.do_sft)
        for label in self.sft.rules:
            self._sweetspot(label)
        if w.do_dpo:
            for label in self.sft.rules:
                for method in w.methods:
                    self._add_preference("fork", self._fork(label, method), self.sft_name)
        if w.references and w.do_sft:
            no_rules = {"perplexity_thresholds": (), "perplexity_patience": ()}
            reference = self._sft(w.total_data, no_rules)
            self._add_sft("reference_sft", reference, base, train=True)
        if w.references and w.do_dpo:
            for method in w.methods:
                self._add_preference("reference_pt", self._from_base(method), base)
        hashes = [(s.name, s.hash, s.evaluation_hash) for s in self.stages]
        default = f"{self.model.label}_{w.dataset}_{w.total_data}-{digest(hashes)[:6]}"
        return Plan(
            experiment=w.experiment or default, stages=tuple(self.stages), about=self._about()
        )

    def _about(self) -> dict[str, Any]:
        w = self.wanted
        return {
            "model": w.model, "source": self.model.source, "dataset": w.dataset,
            "task": site.collections().task(w.task), "total_data": w.total_data,
            "sft_data": w.sft_data, "rules": self.sft.rules, "methods": list(w.methods),
            "k_values": list(self.sampling.k_values), "prompts": self.sampling.prompts,
            "samples": self.sampling.n_samples, "temperature": self.sampling.temperature,
        }  # fmt: skip

    def _pretrain(self) -> str | None:
        entry = site.collections().model(self.wanted.model)
        if entry.from_run is None:
            return None
        config: PretrainRunConfig = pretrain_config(entry.from_run)
        name = locate(site.models_dir(), config.run_name, config.hash).name
        self.stages.append(
            Stage(
                name=name, role="pretrain", hash=config.hash, phases=("train",), wide=True,
                command=("run_pretrain.py", "--model", entry.from_run), seed=config.training.seed,
            )
        )  # fmt: skip
        return name

    def _base(self, base: str | None) -> None:
        where = ("--model", self.wanted.model, *parents.base_flags(self.model))
        self.stages.append(
            self._artifact(
                f"{self.model.label}", "base", self.model.identity_hash, where,
                parents=(base,) if base else (),
            )
        )  # fmt: skip

    def _sweetspot(self, label: str) -> None:
        self.stages.append(
            self._artifact(
                sweetspot_name(self.sft_name, label), "sweetspot",
                sweetspot_hash(self.sft.hash, label),
                ("--run", self.sft_name, "--sweetspot", label),
                parents=(self.sft_name,), parent=self.sft_name, sweetspot=label,
            )
        )  # fmt: skip

    def _artifact(
        self, name: str, role: str, hash_: str, where: tuple[str, ...], **more: Any
    ) -> Stage:
        """A stage that evaluates what another has trained."""
        data = ("--dataset", self.wanted.dataset, "--task", self.wanted.task)
        command = ("run_inference.py", *where, *data, *self._evaluation_flags())
        taken = {stage.name for stage in self.stages}
        return Stage(
            name=f"{name}-{role}" if name in taken else name, role=role, hash=hash_, trains=False,
            artifact=name, command=command if self.evaluates else (),
            **self._evaluation(name, hash_, train=False), **more,
        )  # fmt: skip

    def _sft(self, size: int, rules: Mapping[str, Any]) -> SFTRunConfig:
        return sft_config(
            model=self.wanted.model, dataset=self.wanted.dataset, task=self.wanted.task,
            train_size=size, values={**self.wanted.model_values, **self.wanted.sft_values, **rules},
        )  # fmt: skip

    def _add_sft(self, role: str, config: SFTRunConfig, base: str | None, *, train: bool) -> None:
        name = locate(site.models_dir(), config.run_name, config.hash).name
        flags = parents.sft_flags(config)
        self.stages.append(
            self._trained(
                name, role, config.hash, ("run_sft.py", *flags), train=train,
                parents=(base,) if base else (), train_size=config.dataset.train_size,
                seed=config.training.seed,
            )
        )  # fmt: skip

    def _preference(self, **more: Any) -> PTRunConfig:
        return preference_config(
            model=self.wanted.model, dataset=self.wanted.dataset, task=self.wanted.task,
            values={**self.wanted.model_values, **self.wanted.pft_values}, **more,
        )  # fmt: skip

    def _fork(self, label: str, method: str) -> PTRunConfig:
        parent = parents.parent_of(self.sft, self.sft_name, label, self.wanted.total_data)
        return self._preference(pft_method=method, train_size=None, parent=parent)

    def _from_base(self, method: str) -> PTRunConfig:
        return self._preference(pft_method=method, train_size=self.wanted.total_data)

    def _add_preference(self, role: str, config: PTRunConfig, parent: str | None) -> None:
        is_fork = config.parent is not None
        name = config.run_name
        if not is_fork:
            name = locate(site.models_dir(), name, config.hash).name
        self.stages.append(
            self._trained(
                name, role, config.hash, ("run_dpo.py", *parents.preference_flags(config)),
                train=True, parents=(parent,) if parent else (),
                parent=parent if is_fork else None,
                sweetspot=config.parent.sweetspot if config.parent else None,
                pft_method=config.pft_method, train_size=config.dataset.train_size,
                total_data=self.wanted.total_data, seed=config.training.seed,
            )
        )  # fmt: skip

    def _trained(
        self,
        name: str,
        role: str,
        hash_: str,
        command: tuple[str, ...],
        *,
        train: bool,
        **more: Any,
    ) -> Stage:
        """A stage that trains a run and evaluates it."""
        flags = ("--do_training",) if train else ()
        return Stage(
            name=name, role=role, hash=hash_, command=(*command, *flags, *self._evaluation_flags()),
            **self._evaluation(name, hash_, train=train), **more,
        )  # fmt: skip

    def _evaluation_flags(self) -> tuple[str, ...]:
        default = sampling_config(self.wanted.model)
        phases = [
            *(["--do_inference"] if self.wanted.do_inference else []),
            *(["--do_evaluation"] if self.wanted.do_evaluation else []),
        ]
        return (*phases, *(command_line([(self.sampling, default)]) if phases else []))

    def _evaluation(self, artifact: str, hash_: str, *, train: bool) -> dict[str, Any]:
        config = evaluation_config(
            model=self.wanted.model, artifact=artifact, artifact_hash=hash_,
            dataset=self.wanted.dataset, task=self.wanted.task, sampling=self.sampling,
        )  # fmt: skip
        phases = [
            *(["train"] if train else []),
            *(["infer"] if self.wanted.do_inference else []),
            *(["evaluate"] if self.wanted.do_evaluation else []),
        ]
        return {
            "phases": tuple(phases), "task": config.task, "evaluation_hash": config.hash,
            "evaluation_suffix": config.suffix,
        }  # fmt: skip


def _check(wanted: Wanted) -> None:
    """Raise UserError for what cannot be, before anything is looked at."""
    collections = site.collections()
    if wanted.experiment and not re.fullmatch(r"\w[\w.@-]*", wanted.experiment):
        raise UserError(
            f"experiment '{wanted.experiment}' is no name; use letters, digits and . _ - @."
        )
    collections.model(wanted.model)
    collections.dataset(wanted.dataset, collections.task(wanted.task))
    if not (wanted.do_sft or wanted.do_dpo):
        raise UserError("nothing to do: give --do_sft, --do_dpo or both.")
    if not wanted.methods or len(set(wanted.methods)) < len(wanted.methods):
        raise UserError(f"pft_method names a method twice: {' '.join(wanted.methods)}.")
    for method in wanted.methods:
        collections.method(method)
    check_thresholds(wanted.thresholds)
    if not wanted.thresholds and not wanted.patience:
        raise UserError("no sweetspot is defined: give --perplexity_thresholds.")
    train_dataset.require(wanted.dataset, "validation", 1, "the validation pool")
    train_dataset.require(wanted.dataset, "sft", wanted.sft_data, "sft_data")
    if wanted.sft_data > wanted.total_data:
        raise UserError(
            f"sft_data {wanted.sft_data} is above total_data {wanted.total_data}; "
            "SFT takes its part of the whole budget."
        )
    if wanted.do_dpo:
        train_dataset.require(wanted.dataset, "preference", wanted.total_data, "total_data")
    if wanted.do_dpo and "grpo" in wanted.methods:
        train_dataset.require_answers(wanted.dataset)
    if wanted.do_sft and wanted.references:
        hint = "The SFT reference run takes them all; --no_references leaves it out."
        train_dataset.require(wanted.dataset, "sft", wanted.total_data, "total_data", hint)
