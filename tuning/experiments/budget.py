"""The budget experiment as a list of stages: how to divide a fixed number of examples between SFT
and preference tuning.

    for every base model, budget, SFT ratio and seed:
        SFT on its share, then preference tuning of the result on the rest, once per method
        ratio 1: SFT alone; ratio 0: preference tuning alone, from the base

A run that several budgets need is one stage. Nothing here trains, imports torch or writes; run
directories are only read, for names that are taken and runs that are trained already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.evaluation.prompts import require_rewards
from tuning.experiments.choices import Choices
from tuning.experiments.merge import merged, unite
from tuning.experiments.split import COSTS, Split, exact_cost, exact_ratio, plain
from tuning.experiments.stages import StageMaker, directory_name
from tuning.plan import Plan, Stage
from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.runs.rundir import RunDirectory, locate
from tuning.training import parents
from tuning.training.config_training import SFTRunConfig
from tuning.training.render import sft_command

__all__ = ["Budget", "Split", "budget_plan", "exact_ratio", "merged"]


@dataclass(frozen=True, kw_only=True)
class Budget(Choices):
    """The choices of a budget experiment; several values in a field make a grid."""

    sft_ratios: tuple[str | Decimal, ...]
    """Shares of the budget that SFT takes, as decimals: `0.25`."""
    base_models: tuple[str, ...]
    pft_methods: tuple[str, ...] = ()
    """May be empty if SFT takes the whole budget."""
    train_sizes: tuple[int, ...] = (1000,)
    """Budgets, SFT and preference tuning together: in examples, or in the unit of the costs."""
    sft_cost: str | Decimal = Decimal(1)
    """What the annotation of an SFT example costs."""
    pft_cost: str | Decimal = Decimal(1)
    """What the annotation of a preference example costs."""
    do_training: bool = False
    do_sft_first: bool = False
    """Train the SFT runs that preference tuning starts from; otherwise they must exist."""
    seeds: tuple[int, ...] = ()
    """Seeds of SFT and preference tuning; empty: the default seed."""
    n_seeds: int | None = None
    """In place of `seeds`: so many, from the default seed of each model upwards."""


def budget_plan(budget: Budget) -> tuple[Plan, list[str]]:
    """The stages of a budget experiment in order, and notes to print; UserError for invalid
    choices.
    """
    planner = _Planner(budget)
    plan = planner.plan()
    return plan, planner.notes


class _Planner:
    """Collects the stages of all models and splits, and unites equal ones."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        costs = [exact_cost(getattr(budget, name), name) for name in COSTS]
        self.costs = dict(zip(COSTS, costs, strict=True))
        self.splits = [
            Split(size=size, ratio=ratio, **self.costs)
            for size in dict.fromkeys(budget.train_sizes)
            for ratio in dict.fromkeys(exact_ratio(ratio) for ratio in budget.sft_ratios)
        ]
        self.methods = list(dict.fromkeys(budget.pft_methods))
        _check(budget, self.splits)
        self.notes = [split.note for split in self.splits if split.note]
        self.stages: dict[str, Stage] = {}
        self.model_of: dict[str, str] = {}
        self.sft_runs: dict[str, SFTRunConfig] = {}
        self.unshared = 0
        """Trainings if every model were made by itself."""

    @cached_property
    def _makers(self) -> dict[str, StageMaker]:
        """One per model, with the default seed."""
        models = dict.fromkeys(self.budget.base_models)
        return {model: StageMaker(model=model, choices=self.budget) for model in models}

    def plan(self) -> Plan:
        if self.budget.evaluates:
            for maker in self._makers.values():
                maker.require_test_pool()
        for maker in self._makers.values():
            base = self._start(maker)
            for split in self.splits:
                for seeded in self._seeded[maker.model]:
                    self._split(seeded, base, split)
        name = self.budget.experiment or self._default_name()
        self.notes += self._sharing()
        if self.budget.do_training:
            self._require_parents()
            self._require_answers()
        else:
            self._leave_out()
        return Plan(experiment=name, stages=tuple(self.stages.values()), about=self._about())

    def _sharing(self) -> list[str]:
        """What is saved by training a run once that several models need."""
        runs = [stage for stage in self.stages.values() if stage.role not in ("pretrain", "base")]
        saved = self.unshared - len(runs)
        if saved < 1:
            return []
        sft = sum(stage.pft_method is None for stage in runs)
        return [
            f"{len(runs)} trainings, {sft} of SFT and {len(runs) - sft} of preference tuning, make "
            f"what would be {self.unshared} without shared runs: {saved} are saved"
        ]

    def _add(self, maker: StageMaker, stage: Stage) -> None:
        existing = self.stages.get(stage.name)
        self.stages[stage.name] = unite(existing, stage) if existing else stage
        self.model_of.setdefault(stage.name, maker.model)

    def _start(self, maker: StageMaker) -> str | None:
        """Add a model's pre-training and base stages; returns the name of the former, or None."""
        pretrain = maker.pretrain_stage()
        if pretrain is not None:
            self._add(maker, pretrain)
        name = pretrain.name if pretrain else None
        if self.budget.evaluates:
            self._add(maker, maker.base_stage(name, set(self.stages)))
        return name

    @cached_property
    def _seeded(self) -> dict[str, list[StageMaker]]:
        """Those of every model, one per seed."""
        return {
            model: [replace(maker, seed={"seed": seed}) for seed in self._seeds_of(maker)]
            or [maker]
            for model, maker in self._makers.items()
        }

    def _seeds_of(self, maker: StageMaker) -> list[int]:
        """The seeds of a model that were asked for; none if it is to have its default."""
        if self.budget.n_seeds is None:
            return list(dict.fromkeys(self.budget.seeds))
        first = maker.sft_run(1).training.seed
        return list(range(first, first + self.budget.n_seeds))

    def _split(self, make: StageMaker, base: str | None, split: Split) -> None:
        """Add the runs of one split with one seed."""
        train = self.budget.do_training
        each = 2 if split.n_sft and split.n_pt else 1
        self.unshared += each * max(1, len(self.methods))
        if not split.n_pt:
            config = make.sft_run(split.n_sft)
            alone = make.sft_stage(
                "reference_sft", config, base, train=train, total_data=split.size
            )
            self._add(make, alone)
            return
        sft, parent, start, role = None, None, base, "reference_pt"
        if split.n_sft:
            sft = make.sft_run(split.n_sft)
            first = train and self.budget.do_sft_first
            stage = make.sft_stage("sft", sft, base, train=first, evaluate=False)
            self._add(make, stage)
            self.sft_runs[stage.name] = sft
            start, role = stage.name, "pt"
            parent = parents.parent_of(sft, directory_name(sft))
        for method in self.methods:
            tuned = make.preference_run(method, split.n_pt, parent)
            if sft is not None:
                parents.require_same_base(sft, tuned.model)
            self._add(
                make,
                make.preference_stage(role, tuned, start, total_data=split.size, train=train),
            )

    def _default_name(self) -> str:
        """A name with a hash of the runs, so that it is the same for training and evaluation."""
        b = self.budget
        hashes = [(s.name, s.hash, s.evaluation_hash) for s in self.stages.values() if s.trains]
        makers = list(self._makers.values())
        model = makers[0].base.label if len(makers) == 1 else "grid"
        sizes = "-".join(str(size) for size in dict.fromkeys(b.train_sizes))
        return f"{model}_{b.dataset}_{sizes}-{digest(hashes)[:6]}"

    def _about(self) -> dict[str, Any]:
        b, makers = self.budget, list(self._makers.values())
        samplings = [maker.sampling for maker in makers]
        return {
            "kind": "budget",
            "models": [maker.model for maker in makers],
            "sources": [maker.base.source for maker in makers],
            "dataset": b.dataset,
            "task": site.collections().task(b.task),
            "train_sizes": list(dict.fromkeys(b.train_sizes)),
            **({n: plain(c) for n, c in self.costs.items()} if self._priced else {}),
            "sft_ratios": list(dict.fromkeys(plain(split.ratio) for split in self.splits)),
            "methods": self.methods,
            "seeds": list(
                dict.fromkeys(seed for maker in makers for seed in self._seeds_of(maker))
            ),
            "k_values": _common([list(s.k_values) for s in samplings]),
            "prompts": _common([s.prompts for s in samplings]),
            "samples": _common([s.n_samples for s in samplings]),
            "temperature": _common([s.temperature for s in samplings]),
            "model_of": {name: self.model_of[name] for name in self.stages},
        }

    @property
    def _priced(self) -> bool:
        """Whether budgets are costs."""
        return any(cost != 1 for cost in self.costs.values())

    def _require_parents(self) -> None:
        """Raise UserError if preference tuning needs an SFT run that is not trained or planned."""
        missing = {
            stage.parent: _standing(self.stages[stage.parent])
            for stage in self.stages.values()
            if stage.parent and not self._stands(stage.parent)
        }
        if not missing:
            return
        states = "; ".join(f"'{name}' {how}" for name, how in missing.items())
        first = self.sft_runs[next(iter(missing))]
        runs = "the SFT run" if len(missing) == 1 else f"{len(missing)} SFT runs"
        raise UserError(
            f"preference tuning starts from {runs} that must be trained first: {states}. Add "
            f"DO_SFT_FIRST=y or --do_sft_first, or train "
            f"{'it' if len(missing) == 1 else 'the first'} with: {sft_command(first)}"
        )

    def _stands(self, name: str) -> bool:
        stage = self.stages[name]
        return "train" in stage.phases or _directory(stage).done("train")

    def _require_answers(self) -> None:
        """Raise UserError if runs that are yet to be trained would be scored without answers."""
        if not self.budget.do_evaluation or self.budget.do_inference:
            return
        for stage in self.stages.values():
            if stage.phases == ("train", "evaluate") and not _directory(stage).done("train"):
                raise UserError(
                    f"evaluation scores answers, and '{stage.name}' is not trained yet; add "
                    "inference (DO_INFERENCE=y or --do_inference)."
                )

    def _leave_out(self) -> None:
        """Without training, evaluate only the runs that are trained, and note the others."""
        runs = [s for s in self.stages.values() if s.trains and s.role != "pretrain" and s.phases]
        gone = {
            stage.name: _standing(stage) for stage in runs if not _directory(stage).done("train")
        }
        for stage in runs:
            if stage.name not in gone and stage.parent and not self._stands(stage.parent):
                gone[stage.name] = f"starts from '{stage.parent}', which no longer exists"
        if len(gone) == len(runs):
            name, how = next(iter(gone.items()))
            raise UserError(
                f"none of the {len(runs)} runs of this grid can be evaluated; '{name}' {how}. "
                "Enable training (DO_TRAINING=y or --do_training)."
            )
        self.notes += [f"left out: '{name}' {how}" for name, how in gone.items()]
        kept = {name: stage for name, stage in self.stages.items() if name not in gone}
        continued = {stage.parent for stage in kept.values()}
        self.stages = {
            name: stage for name, stage in kept.items() if stage.phases or name in continued
        }


def _directory(stage: Stage) -> RunDirectory:
    return RunDirectory(locate(site.models_dir(), stage.name, stage.hash))


def _standing(stage: Stage) -> str:
    """Why a run is not trained, for messages."""
    status = _directory(stage).status
    if status["state"] == "failed":
        return f"failed ({status['reason']})"
    if status["state"] == "running":
        return "was started and is not finished"
    return "is not trained yet"


def _common(values: Sequence[Any]) -> Any:
    """The value that all models share, or the list of one per model."""
    return values[0] if all(value == values[0] for value in values) else list(values)


def _check(budget: Budget, splits: Sequence[Split]) -> None:
    """Raise UserError for invalid choices, before run directories are read."""
    collections = site.collections()
    for what, values in (
        ("base_model", budget.base_models),
        ("sft_ratio", budget.sft_ratios),
        ("train_sizes", budget.train_sizes),
    ):
        if not values:
            raise UserError(f"{what} is empty; give one or more.")
    for model in budget.base_models:
        collections.model(model)
    dataset = collections.dataset(budget.dataset, collections.task(budget.task))
    for method in budget.pft_methods:
        collections.method(method)
    budget.require_used(budget.pft_methods)
    if not (budget.do_training or budget.do_inference or budget.do_evaluation):
        raise UserError(
            "nothing to do: enable training, inference or evaluation (DO_TRAINING=y, "
            "DO_INFERENCE=y, DO_EVALUATION=y, or --do_training, --do_inference, --do_evaluation)."
        )
    if budget.seeds and budget.n_seeds is not None:
        raise UserError("seed and seeds are both given; name the seeds, or say how many.")
    for size in budget.train_sizes:
        if size < 1:
            raise UserError(f"train_sizes is {size}; a budget is 1 example or more.")
    for split in splits:
        if not split.n_sft and not split.n_pt:
            raise UserError(
                f"train_sizes is {split.size}, which buys no example at sft_ratio "
                f"{plain(split.ratio)} (sft_cost {plain(split.sft_cost)}, pft_cost "
                f"{plain(split.pft_cost)}); a budget buys one example or more."
            )
    if any(split.n_pt for split in splits) and not budget.pft_methods:
        raise UserError("pft_method is missing; it is needed unless SFT takes the whole budget.")
    _check_pools(dataset, splits)
    if largest := max((split.n_pt for split in splits), default=0):
        task = collections.task(budget.task)
        require_rewards(dataset, task, budget.pft_methods, largest)


def _check_pools(dataset: site.DatasetEntry, splits: Iterable[Split]) -> None:
    for split in splits:
        of = f"of train_sizes {split.size} at sft_ratio {plain(split.ratio)}"
        if split.n_sft:
            train_dataset.require(dataset, "validation", 1, "the validation pool")
            train_dataset.require(dataset, "sft", split.n_sft, f"the SFT part {of}")
        if split.n_pt:
            train_dataset.require(dataset, "preference", split.n_pt, f"the preference part {of}")
