"""The parent of a run, looked up before anything heavy is imported. A parent that is missing is an
error with the command that makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuning import config as site
from tuning.flags import restore
from tuning.runs.errors import UserError, nearest
from tuning.runs.identity import differences
from tuning.runs.rundir import SHORT, RunDirectory, locate
from tuning.training.config_training import Parent, SFTRunConfig
from tuning.training.render import sft_command
from tuning.weights.config import ModelLoadConfig


def require_same_base(parent: SFTRunConfig, model: ModelLoadConfig) -> None:
    """Raise UserError if a parent was trained from other weights, or with another chat template."""
    if parent.model.identity_hash != model.identity_hash:
        raise UserError(
            f"the parent was trained on another base than --model {model.model} is now: "
            f"{'; '.join(differences(model.hashed, parent.model.hashed))}."
        )


def parent_of(
    config: SFTRunConfig, name: str, sweetspot: str | None = None, total_data: int | None = None
) -> Parent:
    """An SFT run as the parent of a preference run; `name` is that of its directory."""
    return Parent(
        run_name=name,
        hash=config.hash,
        sweetspot=sweetspot,
        total_data=total_data,
        is_default=config.is_default_but_rules,
        lora=config.lora if config.artifact_form == "adapter" else None,
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
        there = [other for other, run in runs.items() if (run.config or {}).get("kind") in kinds]
        raise UserError(f"there is no run '{name}' under {root}.{nearest(name, there)}")
    if not runs[name].is_current:
        raise UserError(
            f"run '{name}' was written by another version of tuning; retrain it, or use that "
            "version."
        )
    if found["kind"] not in kinds:
        raise UserError(
            f"'{name}' is a {found['kind']} run; this takes a run of kind {' or '.join(kinds)}."
        )
    return runs[name], found


def named_sft(name: str) -> tuple[SFTRunConfig, RunDirectory]:
    """An SFT run by the name of its folder."""
    directory, found = named_run(name, ("sft",))
    config = restore(SFTRunConfig, found["settings"])
    if config.hash != found["hash"]:
        raise UserError(
            f"the settings of run '{name}' hash to {config.hash[:SHORT]}, and it was trained as "
            f"{found['hash'][:SHORT]}: its config.json was edited, or another version of tuning "
            "wrote it. Retrain it."
        )
    return config, directory
