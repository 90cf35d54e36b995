"""The sweetspot experiment as a list of stages: from what a person wants to what is to be run, in
order.

    base, SFT with sweetspots, a fork a sweetspot and method with the budget that is left,
    SFT on the whole budget, preference tuning on the whole budget

Nothing here trains, imports torch or writes; run directories are only looked at for the names that
are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.pipeline.stage_makers import StageMaker, check_experiment, directory_name
from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.runs.stages import Plan, Stage
from tuning.runs.sweetspot import sweetspot_hash, sweetspot_name
from tuning.training import parents
from tuning.training.config_parts import check_thresholds
from tuning.training.config_training import PTRunConfig


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
        self.maker = StageMaker(
            model=wanted.model, dataset=wanted.dataset, task=wanted.task,
            do_inference=wanted.do_inference, do_evaluation=wanted.do_evaluation,
            model_values=wanted.model_values, sft_values=wanted.sft_values,
            pft_values=wanted.pft_values, evaluation_values=wanted.evaluation_values,
        )  # fmt: skip
        self.stages: list[Stage] = []
        train_dataset.require(wanted.dataset, "test", self.maker.sampling.prompts, "prompts")
        rules = {
            "perplexity_thresholds": wanted.thresholds,
            "perplexity_patience": wanted.patience,
            "early_stop": wanted.early_stop,
        }
        self.sft = self.maker.sft_run(wanted.sft_data, rules)
        self.sft_name = directory_name(self.sft)

    def plan(self) -> Plan:
        w, make = self.wanted, self.maker
        base = self._pretrain()
        self.stages.append(make.base_stage(base, self._taken()))
        self.stages.append(make.sft_stage("sft", self.sft, base, train=w.do_sft))
        for label in self.sft.rules:
            self._sweetspot(label)
        if w.do_dpo:
            for label in self.sft.rules:
                for method in w.methods:
                    self._add_preference("fork", self._fork(label, method), self.sft_name)
        if w.references and w.do_sft:
            no_rules = {"perplexity_thresholds": (), "perplexity_patience": ()}
            reference = make.sft_run(w.total_data, no_rules)
            self.stages.append(make.sft_stage("reference_sft", reference, base, train=True))
        if w.references and w.do_dpo:
            for method in w.methods:
                config = make.preference_run(method, w.total_data)
                self._add_preference("reference_pt", config, base)
        hashes = [(s.name, s.hash, s.evaluation_hash) for s in self.stages]
        default = f"{make.base.label}_{w.dataset}_{w.total_data}-{digest(hashes)[:6]}"
        return Plan(
            experiment=w.experiment or default, stages=tuple(self.stages), about=self._about()
        )

    def _about(self) -> dict[str, Any]:
        w, sampling = self.wanted, self.maker.sampling
        seeds = (s.seed for s in self.stages if s.kind in ("sft", "pft") and s.seed is not None)
        return {
            "kind": "sweetspot", "models": [w.model], "sources": [self.maker.base.source],
            "dataset": w.dataset, "task": site.collections().task(w.task),
            "train_sizes": [w.total_data], "sft_data": [w.sft_data], "rules": self.sft.rules,
            "methods": list(w.methods), "seeds": list(dict.fromkeys(seeds)),
            "k_values": list(sampling.k_values), "prompts": sampling.prompts,
            "samples": sampling.n_samples, "temperature": sampling.temperature,
            "model_of": {stage.name: w.model for stage in self.stages},
        }  # fmt: skip

    def _taken(self) -> set[str]:
        return {stage.name for stage in self.stages}

    def _pretrain(self) -> str | None:
        stage = self.maker.pretrain_stage()
        if stage is None:
            return None
        self.stages.append(stage)
        return stage.name

    def _sweetspot(self, label: str) -> None:
        self.stages.append(
            self.maker.evaluated_stage(
                sweetspot_name(self.sft_name, label), "sweetspot",
                sweetspot_hash(self.sft.hash, label),
                ("--run", self.sft_name, "--sweetspot", label), self._taken(),
                parents=(self.sft_name,), parent=self.sft_name, sweetspot=label,
            )
        )  # fmt: skip

    def _fork(self, label: str, method: str) -> PTRunConfig:
        parent = parents.parent_of(self.sft, self.sft_name, label, self.wanted.total_data)
        return self.maker.preference_run(method, None, parent)

    def _add_preference(self, role: str, config: PTRunConfig, parent: str | None) -> None:
        self.stages.append(
            self.maker.preference_stage(role, config, parent, total_data=self.wanted.total_data)
        )


def _check(wanted: Wanted) -> None:
    """Raise UserError for what cannot be, before anything is looked at."""
    collections = site.collections()
    check_experiment(wanted.experiment)
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
