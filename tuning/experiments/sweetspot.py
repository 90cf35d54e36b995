"""The sweetspot experiment as a list of stages, in order:

    base, SFT with sweetspots, a fork per sweetspot and method on the rest of the budget,
    SFT on the whole budget, preference tuning on the whole budget

Nothing here trains, imports torch or writes; run directories are only read, for names that are
taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.evaluation.prompts import require_rewards
from tuning.experiments.choices import RULES, Choices
from tuning.experiments.stages import StageMaker, directory_name
from tuning.plan import Plan, Stage
from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.sweetspots.config import check_thresholds
from tuning.training import parents

_NO_RULES = dict.fromkeys(
    ("perplexity_thresholds", "perplexity_patience", "pass_at_k_targets", "pass_at_k_patience"), ()
)


@dataclass(frozen=True, kw_only=True)
class Wanted(Choices):
    """The choices of a sweetspot experiment; its rules are among `sft_values`."""

    model: str
    total_data: int
    """The whole budget in examples."""
    sft_data: int
    """Examples of it that SFT may use."""
    methods: tuple[str, ...] = ("dpo",)
    do_sft: bool = False
    do_dpo: bool = False
    references: bool = True
    """Whether to train the references: SFT alone and preference tuning alone on all data."""
    seed: int | None = None


def sweetspot_plan(wanted: Wanted) -> Plan:
    """The stages of a sweetspot experiment in order; UserError for invalid choices."""
    return _Planner(wanted).plan()


class _Planner:
    """Builds the stages, kind by kind; each names its parents."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        _check(wanted)
        seed = {} if wanted.seed is None else {"seed": wanted.seed}
        self.maker = StageMaker(model=wanted.model, choices=wanted, seed=seed)
        self.stages: list[Stage] = []
        self.maker.require_test_pool()
        self.sft = self.maker.sft_run(wanted.sft_data, _rules(wanted))
        if not self.sft.rules:
            raise UserError(
                "no sweetspot is defined: give --perplexity_thresholds or --pass_at_k_targets."
            )
        self.sft_name = directory_name(self.sft)

    def plan(self) -> Plan:
        w, make = self.wanted, self.maker
        base = self._pretrain()
        labels = [rule.label for rule in self.sft.rules]
        self.stages.append(make.base_stage(base, self._taken()))
        self.stages.append(make.sft_stage("sft", self.sft, base, train=w.do_sft))
        for label in labels:
            self.stages.append(make.sweetspot_stage(self.sft, self.sft_name, label, self._taken()))
        if w.do_dpo:
            for label in labels:
                for method in w.methods:
                    self._fork(label, method)
        if w.references and w.do_sft:
            reference = make.sft_run(w.total_data, _NO_RULES)
            self.stages.append(make.sft_stage("reference_sft", reference, base, train=True))
        if w.references and w.do_dpo:
            for method in w.methods:
                config = make.preference_run(method, w.total_data)
                self.stages.append(
                    make.preference_stage("reference_pt", config, base, total_data=w.total_data)
                )
        hashes = [(s.name, s.hash, s.evaluation_hash) for s in self.stages]
        default = f"{make.base.label}_{w.dataset}_{w.total_data}-{digest(hashes)[:6]}"
        return Plan(
            experiment=w.experiment or default, stages=tuple(self.stages), about=self._about()
        )

    def _about(self) -> dict[str, Any]:
        w, sampling = self.wanted, self.maker.sampling
        seeds = (s.seed for s in self.stages if s.kind in ("sft", "pft") and s.seed is not None)
        return {
            "kind": "sweetspot",
            "models": [w.model],
            "sources": [self.maker.base.source],
            "dataset": w.dataset,
            "task": site.collections().task(w.task),
            "train_sizes": [w.total_data],
            "sft_data": [w.sft_data],
            "rules": [rule.label for rule in self.sft.rules],
            "methods": list(w.methods),
            "seeds": list(dict.fromkeys(seeds)),
            "k_values": list(sampling.k_values),
            "prompts": sampling.prompts,
            "samples": sampling.n_samples,
            "temperature": sampling.temperature,
            "model_of": {stage.name: w.model for stage in self.stages},
        }

    def _taken(self) -> set[str]:
        return {stage.name for stage in self.stages}

    def _pretrain(self) -> str | None:
        stage = self.maker.pretrain_stage()
        if stage is None:
            return None
        self.stages.append(stage)
        return stage.name

    def _fork(self, label: str, method: str) -> None:
        total, make = self.wanted.total_data, self.maker
        parent = parents.parent_of(self.sft, self.sft_name, label, total)
        config = make.preference_run(method, None, parent)
        parents.require_same_base(self.sft, config.model)
        self.stages.append(make.preference_stage("fork", config, self.sft_name, total_data=total))


def _rules(wanted: Wanted) -> dict[str, Any]:
    """The rules that were given, or else the default thresholds of the model."""
    rules = {name: value for name, value in wanted.sft_values.items() if name in RULES}
    if "perplexity_thresholds" in rules:
        return rules
    collections = site.collections()
    default = (
        ()
        if any(rules.get(name) for name in _NO_RULES)
        else collections.thresholds(collections.model(wanted.model))
    )
    return rules | {"perplexity_thresholds": default}


def _check(wanted: Wanted) -> None:
    """Raise UserError for invalid choices, before run directories are read."""
    collections = site.collections()
    collections.model(wanted.model)
    dataset = collections.dataset(wanted.dataset, collections.task(wanted.task))
    if not (wanted.do_sft or wanted.do_dpo):
        raise UserError("nothing to do: give --do_sft, --do_dpo or both.")
    if wanted.do_dpo and not wanted.methods:
        raise UserError("pft_method is empty; --do_dpo needs one or more.")
    if len(set(wanted.methods)) < len(wanted.methods):
        raise UserError(f"pft_method names a method twice: {' '.join(wanted.methods)}.")
    for method in wanted.methods:
        collections.method(method)
    wanted.require_used(wanted.methods)
    check_thresholds(wanted.sft_values.get("perplexity_thresholds", ()))
    train_dataset.require(dataset, "validation", 1, "the validation pool")
    train_dataset.require(dataset, "sft", wanted.sft_data, "sft_data")
    if wanted.sft_data > wanted.total_data:
        raise UserError(
            f"sft_data {wanted.sft_data} is above total_data {wanted.total_data}; "
            "SFT takes its part of the whole budget."
        )
    if wanted.do_dpo:
        train_dataset.require(dataset, "preference", wanted.total_data, "total_data")
        task = collections.task(wanted.task)
        require_rewards(dataset, task, wanted.methods, wanted.total_data)
    if wanted.do_sft and wanted.references:
        hint = "The SFT reference run uses them all; --no_references leaves it out."
        train_dataset.require(dataset, "sft", wanted.total_data, "total_data", hint)
