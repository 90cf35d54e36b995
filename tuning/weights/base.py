"""Where a base model comes from: a run of this project, a local folder, or the hub. No torch."""

from __future__ import annotations

from pathlib import Path

from tuning import config as site
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory, locate
from tuning.weights import four_bit
from tuning.weights.config import ModelLoadConfig
from tuning.weights.files import checked_hash, require_whole
from tuning.weights.hub import snapshot_folder

MODEL = "model"
"""The folder of a run that holds its final weights."""


def base_directory(model: ModelLoadConfig) -> RunDirectory | None:
    """The run that makes the base model; None for a model from elsewhere."""
    kind, _, name = model.source.partition(":")
    if kind != "run":
        return None
    return RunDirectory(locate(site.models_dir(), name, model.base_hash or ""))


def require_base(model: ModelLoadConfig) -> None:
    """Raise UserError where the base is a run of this project that is not done, a folder whose
    files changed since the run was configured, files that are not whole, or to be held in 4 bits
    without the package for it.
    """
    if model.load_in_4bit:
        four_bit.require()
    directory = base_directory(model)
    if directory is not None and not directory.done("train"):
        raise UserError(
            f"model '{model.model}' has not been pre-trained yet; make it with: "
            f"python tuning/run_pretrain.py --model {model.source.partition(':')[2]}"
        )
    if directory is not None and (directory.path / MODEL).is_dir():
        require_whole(directory.path / MODEL)
    elif directory is None and model.path is None and (cached := snapshot_folder(model.source)):
        require_whole(cached, partial=True)
    if model.path is not None and checked_hash(Path(model.path)) != model.base_hash:
        raise UserError(
            f"the files of '{model.path}' were changed since this run was configured; restore "
            "them, or submit the experiment again."
        )


def base_location(model: ModelLoadConfig) -> str:
    """A folder or hub id that from_pretrained takes; UserError where it is not there."""
    require_base(model)
    directory = base_directory(model)
    return str(directory.path / MODEL) if directory else model.path or model.source
