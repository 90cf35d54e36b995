"""Where the weights of a model lie: of a base, a run, or a checkpoint of one. No torch; what opens
an artifact is loading.py, or another inference engine.

An adapter lies over the nearest ancestor that left whole weights, or the sweetspot of it that was
forked, or else over the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory, locate
from tuning.sweetspots.store import checkpoint_name
from tuning.weights.base import MODEL, base_location
from tuning.weights.config import ModelLoadConfig


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Files that make up a model, and how they are read."""

    model: str
    """The base model as messages name it."""
    base: str
    """Whole weights: a folder or a hub id."""
    adapter: Path | None = None
    """The folder of a LoRA adapter over them; None: they are the model."""
    tokenizer: str
    """A folder or a hub id."""
    chat_template: str | None = None
    """A file of tuning/data/chat_templates without its ending; None: the tokenizer's own."""
    dtype: str = "auto"
    """float32, bfloat16 or auto, as ModelLoadConfig has it."""
    load_in_4bit: bool = False
    """Whether `base` is held in 4 bits."""


def artifact_of(
    model: ModelLoadConfig, directory: RunDirectory | None = None, checkpoint: Path | None = None
) -> Artifact:
    """The artifact of a run, or of one of its checkpoints; without a run, of the base model.

    Raises UserError where the base, or a run whose weights the adapter lies over, is not there;
    whether the adapter is, turns out when it is opened.
    """
    base, adapter = base_location(model), None
    tokenizer = base
    if directory is not None:
        where = checkpoint or directory.path / MODEL
        base = str(_whole_weights(directory, checkpoint) or base)
        adapter = None if base == str(where) else where
    return Artifact(
        model=model.model,
        base=base,
        adapter=adapter,
        tokenizer=tokenizer,
        chat_template=model.chat_template,
        dtype=model.dtype,
        load_in_4bit=model.load_in_4bit,
    )


def _whole_weights(directory: RunDirectory | None, checkpoint: Path | None) -> Path | None:
    """The folder of the whole weights that a run, or a checkpoint of it, consists of or lies over;
    None: those of the base. UserError if it lies over a run that is missing.
    """
    while directory is not None and (config := directory.config) is not None:
        if config["artifact"] == "full":
            return checkpoint or directory.path / MODEL
        parent = config["parent"]
        if not parent:
            return None
        directory = _parent_of(directory, config)
        label = parent.get("sweetspot")
        checkpoint = directory.path / checkpoint_name(label) if directory and label else None
    return None


def _parent_of(directory: RunDirectory, config: dict[str, Any]) -> RunDirectory | None:
    """The parent of a run; None for a missing one of which only the adapter was used."""
    parent = config["parent"]
    for root in dict.fromkeys((directory.path.parent, site.models_dir())):
        found = RunDirectory(locate(root, parent["run_name"], parent["hash"]))
        if found.hash == parent["hash"]:
            return found
    if (config["settings"].get("parent") or {}).get("lora"):
        return None
    raise UserError(
        f"'{directory.name}' lies over the weights of run '{parent['run_name']}', which is missing "
        "or was retrained with other settings."
    )
