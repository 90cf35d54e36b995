"""What a run stands on, looked up before anything heavy is imported: its base, its parent, its
parent's sweetspots.

What is missing is an error that gives the command which makes it.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tuning import config as site
from tuning.flags import command_line, restore
from tuning.runs.errors import UserError, choose, nearest
from tuning.runs.identity import differences, settings, threshold_label
from tuning.runs.rundir import RunDirectory, locate
from tuning.training.config_training import (
    ModelLoadConfig,
    Parent,
    PTRunConfig,
    SFTRunConfig,
    model_config,
    preference_config,
)


def base_directory(model: ModelLoadConfig) -> RunDirectory | None:
    """The run that makes the base model; None for a model from elsewhere."""
    kind, _, name = model.source.partition(":")
    if kind != "run":
        return None
    return RunDirectory(locate(site.models_dir(), name, model.base_hash or ""))


def require_base(model: ModelLoadConfig) -> None:
    """Raise UserError where the base is a run of this project that is not done."""
    directory = base_directory(model)
    if directory is not None and not directory.done("train"):
        raise UserError(
            f"model '{model.model}' has not been pre-trained yet; make it with: "
            f"python tuning/run_pretrain.py --model {model.source.partition(':')[2]}"
        )


def require_same_base(parent: SFTRunConfig, model: ModelLoadConfig) -> None:
    """Raise UserError where a parent stands on other weights, or another chat template."""
    if parent.model.identity_hash != model.identity_hash:
        raise UserError(
            f"the parent was trained on another base than --model {model.model} is now: "
            f"{'; '.join(differences(settings(model), settings(parent.model)))}."
        )


def base_flags(model: ModelLoadConfig) -> list[str]:
    """The flags with which run_inference.py loads a base model as a run does."""
    default = model_config(model.model)
    return command_line([(replace(model, max_seq_length=default.max_seq_length), default)])


def sft_command(config: SFTRunConfig) -> str:
    """The command that makes an SFT run."""
    return shlex.join(["python", "tuning/run_sft.py", *sft_flags(config), "--do_training"])


def sft_flags(config: SFTRunConfig) -> list[str]:
    """The flags from which run_sft.py makes this very config."""
    default = config.default()
    names = ["model", "lora", "training", "perplexity", "engine"]
    if config.trainer == "engine":
        # Of the other trainer, and refused; the trainer itself is always named: see cluster.py.
        names.remove("lora")
        micro = default.training.micro_batch_size
        config = replace(config, training=replace(config.training, micro_batch_size=micro))
        default = replace(default, engine=replace(default.engine, trainer="trl"))
    parts = [(getattr(config, p), getattr(default, p)) for p in names]
    return [
        "--model", config.model.model, "--dataset", config.dataset.dataset, "--task", config.task,
        "--train_size", str(config.dataset.train_size), *command_line(parts),
    ]  # fmt: skip


def preference_flags(config: PTRunConfig) -> list[str]:
    """The flags from which run_dpo.py makes this very config."""
    default = preference_config(
        model=config.model.model, dataset=config.dataset.dataset, task=config.task,
        pft_method=config.pft_method, train_size=config.dataset.train_size, parent=config.parent,
    )  # fmt: skip
    words = [
        "--model", config.model.model, "--dataset", config.dataset.dataset, "--task", config.task,
        "--pft_method", config.pft_method,
    ]  # fmt: skip
    if config.dataset.train_size is not None:
        words += ["--train_size", str(config.dataset.train_size)]
    if config.parent:
        words += ["--parent_run", config.parent.run_name]
        if config.parent.sweetspot:
            words += ["--sweetspot", config.parent.sweetspot]
            words += ["--total_data", str(config.parent.total_data)]
    parts = [(getattr(config, p), getattr(default, p)) for p in ("model", "lora", "training")]
    return words + command_line(parts)


def parent_of(
    config: SFTRunConfig, name: str, sweetspot: str | None = None, total_data: int | None = None
) -> Parent:
    """An SFT run as the parent of a preference run; `name` is that of its directory."""
    return Parent(
        run_name=name,
        hash=config.hash,
        sweetspot=sweetspot,
        total_data=total_data,
        model_defaults=config.model_defaults,
        lora=config.lora if config.artifact == "adapter" else None,
    )


def sft_parent(config: SFTRunConfig) -> RunDirectory:
    """The directory of a finished SFT run; UserError with the command that makes it."""
    directory = RunDirectory(locate(site.models_dir(), config.run_name, config.hash))
    if not directory.done("train"):
        raise UserError(
            f"run '{directory.name}' is not trained yet; make it with: {sft_command(config)}"
        )
    return directory


def named_run(name: str, kinds: Sequence[str]) -> tuple[RunDirectory, dict[str, Any]]:
    """A run of one of `kinds`, and its config.json, by the name of its folder."""
    root = site.models_dir()
    runs = {path.parent.name: RunDirectory(path.parent) for path in root.glob("*/config.json")}
    found = runs[name].config if name in runs else None
    if found is None:
        there = [other for other, run in runs.items() if (run.config or {})["kind"] in kinds]
        raise UserError(f"there is no run '{name}' under {root}.{nearest(name, there)}")
    if found["kind"] not in kinds:
        raise UserError(
            f"'{name}' is a {found['kind']} run; this takes a run of kind {' or '.join(kinds)}."
        )
    return runs[name], found


def named_sft(name: str) -> tuple[SFTRunConfig, RunDirectory]:
    """An SFT run by the name of its folder."""
    directory, found = named_run(name, ("sft",))
    return restore(SFTRunConfig, found["settings"]), directory


def rule_label(config: SFTRunConfig, name: str) -> str:
    """The label of a sweetspot rule of an SFT run; `2` and `2.0` mean `ppl-2.0`."""
    label = name if name.startswith("ppl-") else f"ppl-{name}"
    with contextlib.suppress(ValueError):
        label = threshold_label(float(label.removeprefix("ppl-")))
    return choose(f"sweetspot of '{config.run_name}':", label, config.rules)
