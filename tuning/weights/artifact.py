"""Where the weights of a model lie: of a base, a run, or a checkpoint of one. No torch; what opens
an artifact is loading.py, or another inference engine.

An adapter lies over the nearest ancestor that left whole weights, or the sweetspot of it that was
forked, or else over the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuning.runs.rundir import RunDirectory
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


def artifact_of(
    model: ModelLoadConfig, directory: RunDirectory | None = None, checkpoint: Path | None = None
) -> Artifact:
    """The artifact of a run, or of one of its checkpoints; without a run, of the base model.

    Raises UserError where the base is not there; whether the adapter is, turns out when it is
    opened.
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
    )


def _whole_weights(directory: RunDirectory | None, checkpoint: Path | None) -> Path | None:
    """The folder of the whole weights that a run, or a checkpoint of it, consists of or lies over;
    None: those of the base.
    """
    while directory is not None and directory.config is not None:
        if directory.config["artifact"] == "full":
            return checkpoint or directory.path / MODEL
        parent = directory.config["parent"]
        if not parent:
            return None
        directory = RunDirectory(directory.path.parent / parent["run_name"])
        label = parent.get("sweetspot")
        checkpoint = directory.path / checkpoint_name(label) if label else None
    return None
