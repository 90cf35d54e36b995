"""The phase around a training that measures what it changed (`--evaluate_before`): the task score,
the perplexity and, of preference tuning, the implicit reward, before and after it.

A model is measured under its own name (evaluation/before_after.py), so what a parent left is not
measured again by those that start from it. The model that a training starts from stays on disk:
where it cannot be measured before without harm it is measured afterwards, with the same result.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.data.config import dataset_config
from tuning.evaluation.before_after import (
    FOLDER,
    BeforeAfterConfig,
    HeldOutConfig,
    LikelihoodRunConfig,
    held_out_part,
)
from tuning.evaluation.config import (
    EvaluationRunConfig,
    PassAtKConfig,
    artifact_hash,
    artifact_name,
    evaluation_config,
)
from tuning.methods import method
from tuning.phases.evaluate import artifact_named, evaluate
from tuning.phases.options import Options
from tuning.phases.train import use_devices
from tuning.runs import atomic, interrupt, measured, ranks, typed
from tuning.runs.errors import InUse
from tuning.runs.log import logger
from tuning.runs.measured import FILE, PHASE
from tuning.runs.rundir import Identity, RunDirectory, claim, locate
from tuning.training.config_training import PTRunConfig, SFTRunConfig
from tuning.weights.config import ModelLoadConfig

if TYPE_CHECKING:
    from tuning.evaluation.likelihood import Answers

Run = SFTRunConfig | PTRunConfig
LIKELIHOODS = "likelihoods.json"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to measure: a base, a run, or a sweetspot of one."""

    base: ModelLoadConfig
    run: str | None = None
    """The name of its directory."""
    run_hash: str | None = None
    sweetspot: str | None = None

    @classmethod
    def before(cls, run: Run) -> Model:
        """The model that a training starts from."""
        parent = run.parent if isinstance(run, PTRunConfig) else None
        if parent is None:
            return cls(base=run.model)
        return cls(
            base=run.model,
            run=parent.run_name,
            run_hash=parent.hash,
            sweetspot=parent.sweetspot,
        )

    @classmethod
    def after(cls, run: Run, directory: RunDirectory) -> Model:
        """The model that it leaves."""
        return cls(base=run.model, run=directory.name, run_hash=run.hash)

    @property
    def which(self) -> dict[str, Any]:
        """It, as evaluations and artifacts are told of it."""
        return {"run": self.run, "run_hash": self.run_hash, "sweetspot": self.sweetspot}

    @property
    def name(self) -> str:
        """What it is called as something that is measured."""
        return artifact_name(self.base, self.run, self.sweetspot)


def before_after_config(
    run: Run, held_out: HeldOutConfig, sampling: PassAtKConfig | None, validation_size: int
) -> BeforeAfterConfig:
    """What to measure around a training; `sampling`: how answers are sampled, where they are."""
    name, entry, start = run.dataset.dataset, run.dataset.entry, Model.before(run)
    tunes = isinstance(run, PTRunConfig)
    return BeforeAfterConfig(
        validation=(
            dataset_config(name, run.task, "validation")
            if train_dataset.has_pool(entry, "validation")
            else None
        ),
        validation_size=validation_size,
        pairs=(
            replace(run.dataset, train_size=None)
            if tunes and train_dataset.is_paired(entry)
            else None
        ),
        held_out=held_out,
        before=(
            evaluation_config(
                start.base, dataset=name, task=run.task, sampling=sampling, **start.which
            )
            if sampling
            else None
        ),
    )


class BeforeAfter:
    """Measures around one training, if it is asked for; `train_size` are its examples, and
    `evaluation` is that of the model that it leaves.
    """

    def __init__(
        self,
        run: Run,
        train_size: int,
        options: Options,
        evaluation: EvaluationRunConfig | None = None,
    ) -> None:
        self.run = run
        self.train_size = train_size
        self.options = options
        self.evaluation = evaluation

    def before(self, directory: RunDirectory) -> None:
        """Measure what the training starts from; `directory` is that of the run.

        Not where several processes wait, or an engine would take memory that the training needs;
        and what another process measures is left to it. All that is then measured in `after()`.
        """
        config = self.options.before_after
        if config is None or ranks.world_size() > 1 or directory.done("train"):
            return
        sampled = config.before is None or config.before.sampling.backend == "hf"
        try:
            self._measure(Model.before(self.run), config, wait=False)
            if sampled:
                self._evaluate_start(config, wait=False)
        except InUse as held:
            logger.info(f"{held} What it measures is used when this run is trained.")

    def after(self, directory: RunDirectory, identity: Identity) -> None:
        """Measure what the training left, and write what it changed into its directory."""
        config = self.options.before_after
        if config is None or not ranks.is_first() or not directory.done("train"):
            return
        wait, first = self.options.wait, self.options.first_prompts
        if measured.holds(directory, config.hash, first):
            return
        with (
            claim(
                site.models_dir(),
                replace(identity, run_name=directory.name),
                wait=wait,
                check=interrupt.check,
            ) as held,
            held.phase(PHASE),
        ):
            found = self._compared(held, config, wait=wait)
            atomic.write_json(held.path / FILE, found | measured.told_by(config.hash, first))
        if config.pairs and found["after"]["reward"] is None:
            logger.warning(
                f"{directory.name} was trained on every pair of '{config.pairs.dataset}': none is "
                "held out, and the implicit reward is not measured"
            )
        logger.info(f"{directory.name}: {summary(found)}")

    def _compared(
        self, directory: RunDirectory, config: BeforeAfterConfig, *, wait: bool
    ) -> dict[str, Any]:
        """The content of the file."""
        from tuning.evaluation.likelihood import changed, described

        start, end = Model.before(self.run), Model.after(self.run, directory)
        self._evaluate_start(config, wait=wait)
        first = self._measure(start, config, wait=wait)
        last = self._measure(end, config, wait=wait)
        ours = self.evaluation
        if ours is not None:
            ours = replace(ours, artifact=directory.name, run=directory.name)
        scores = _scores(config.before), _scores(ours)
        return {
            "before": {"model": start.name, **described(first, first, self._beta, scores[0])},
            "after": {"model": end.name, **described(last, first, self._beta, scores[1])},
            "change": changed(first, last, *scores),
        }

    @property
    def _beta(self) -> float:
        """The scale of the implicit reward."""
        if isinstance(self.run, SFTRunConfig):
            return 1.0
        return getattr(self.run.training, method(self.run.pft_method).beta) or 1.0

    def _evaluate_start(self, config: BeforeAfterConfig, *, wait: bool) -> None:
        """Answers of the model that the training starts from, and their scores."""
        if config.before is None:
            return
        start = Model.before(self.run)
        asked = replace(self.options, do_inference=True, do_evaluation=True, force=False, wait=wait)
        evaluate(config.before, artifact_named(start.base, **start.which), asked)

    def _measure(
        self, model: Model, config: BeforeAfterConfig, *, wait: bool
    ) -> dict[str, Answers]:
        """The likelihoods of a model, by pool."""
        opened = _Opened(model)
        found = {
            part.pool: _likelihoods(part, opened, wait=wait) for part in self._parts(model, config)
        }
        opened.close()
        return found

    def _parts(self, model: Model, config: BeforeAfterConfig) -> list[LikelihoodRunConfig]:
        """The parts of pools to measure a model on."""
        named: dict[str, Any] = {
            "base": model.base,
            "artifact": model.name,
            "artifact_hash": artifact_hash(model.base, model.run_hash, model.sweetspot),
            "max_seq_length": self.run.model.max_seq_length,
        }
        parts = []
        if data := config.validation:
            size = min(config.validation_size, train_dataset.pool_size(data.entry, "validation"))
            parts.append(
                LikelihoodRunConfig(**named, data=data, pool="validation", first=0, size=size)
            )
        if data := config.pairs:
            there = train_dataset.pool_size(data.entry, "preference")
            wanted = config.held_out.heldout_pairs
            first, size = held_out_part(there, self.train_size, wanted)
            if size:
                part = named | {"pool": "preference", "first": first, "size": size}
                parts.append(LikelihoodRunConfig(**part, data=data))
        return parts


class _Opened:
    """A model that is loaded when it is needed."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """(model, tokenizer)"""
        from tuning.weights import loading

        use_devices()
        artifact = artifact_named(self.model.base, **self.model.which)
        return loading.open_model(artifact), loading.open_tokenizer(artifact)

    def close(self) -> None:
        """Give its memory back: a training follows."""
        if self.__dict__.pop("loaded", None) is None:
            return
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _likelihoods(config: LikelihoodRunConfig, opened: _Opened, *, wait: bool) -> Answers:
    """Those that stand, or else measured now."""
    root = site.outputs_dir(FOLDER)
    standing = RunDirectory(locate(root, config.run_name, config.hash))
    if not standing.done(PHASE):
        identity = config.identity(parent=config.evaluates)
        with claim(root, identity, wait=wait, check=interrupt.check) as standing:
            if not standing.done(PHASE):
                with standing.phase(PHASE):
                    standing.progress(PHASE, 0, config.size, config.pool, final=True)
                    found = _measured(config, opened)
                    atomic.write_json(standing.path / LIKELIHOODS, {"answers": found})
        interrupt.check()
    read = typed.read(standing.path / LIKELIHOODS, {"answers": dict}, required=("answers",))
    return dict((read or {})["answers"])


def _measured(config: LikelihoodRunConfig, opened: _Opened) -> Answers:
    from tuning.data.encoding import Encoded, encode, encode_pairs
    from tuning.evaluation.perplexity import sums

    rows = config.data.rows(config.pool)[config.first : config.first + config.size]
    named = config.data.where(config.pool)
    model, tokenizer = opened.loaded
    length = config.max_seq_length

    def where(number: int) -> str:
        return named(config.first + number)

    if config.pool == "validation":
        columns = {"completion": encode(tokenizer, rows, length, where)}
    else:
        pairs = encode_pairs(tokenizer, rows, length, where)
        columns = {
            name: [Encoded(prompt=p.prompt, response=getattr(p, name)) for p in pairs]
            for name in ("chosen", "rejected")
        }
    measured = {name: sums(model, pool) for name, pool in columns.items()}
    return {name: {"nll": nll, "tokens": tokens} for name, (nll, tokens) in measured.items()}


def _scores(config: EvaluationRunConfig | None) -> dict[str, Any] | None:
    """scores.json of a finished evaluation."""
    if config is None:
        return None
    root = site.outputs_dir(config.task)
    directory = RunDirectory(locate(root, config.run_name, config.hash))
    return typed.scores(directory.path / "scores.json") if directory.done("evaluate") else None


_NAMES = {"score": "pass@1", "perplexity": "perplexity", "reward": "implicit reward accuracy"}


def summary(found: Mapping[str, Any]) -> str:
    """What a training changed, in one line."""
    told = [
        f"{name} {found['before'][key]['estimate']:.3f} -> {found['after'][key]['estimate']:.3f}"
        for key, name in _NAMES.items()
        if found["before"][key] and found["after"][key]
    ]
    return ", ".join(told) or "nothing could be measured"


def table(directory: RunDirectory) -> str:
    """What the training of a run changed, for people, with 95% intervals; "" where that was not
    measured.
    """
    found = measured.read(directory)
    heads = [f"{side}: {found[side]['model']}" for side in _SIDES] if found else []
    lines = [["", *heads]] if heads else []
    for key, name in _NAMES.items():
        cells = [_interval(found[side][key]) if found else "" for side in _SIDES]
        if any(cells):
            lines.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ((f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


_SIDES = ("before", "after")


def _interval(found: Mapping[str, float] | None) -> str:
    return f"{found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if found else ""
