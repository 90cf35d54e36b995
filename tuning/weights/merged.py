"""Adapters merged into their base, for engines that read whole models only.

Each is made once, under TUNING_HOME/cache/merged, by what it is made of; `tuning clean` removes
those that nobody used for a day.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tuning import config as site
from tuning.runs.atomic import whole_directory
from tuning.runs.content import file_hash, weights_hash
from tuning.runs.identity import digest
from tuning.runs.lock import flock
from tuning.runs.log import logger
from tuning.weights.artifact import Artifact


def merged(artifact: Artifact) -> Artifact:
    """The artifact as whole weights; merged in float32, and kept in the precision that it is loaded
    in.
    """
    assert artifact.adapter is not None
    folder = site.merged_dir() / _identity(artifact)[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("a") as lock:
        flock(lock)
        if not folder.is_dir():
            logger.info(f"merging '{artifact.adapter}' into its base")
            _make(artifact, folder)
        os.utime(folder)
    return replace(artifact, base=str(folder), adapter=None)


def _identity(artifact: Artifact) -> str:
    """A hash over the weights of the base and of the adapter, and the precision."""
    assert artifact.adapter is not None
    base = Path(artifact.base)
    return digest(
        {
            "base": weights_hash(base) if base.is_dir() else artifact.base,
            "adapter": {
                file.name: file_hash(file) for file in sorted(artifact.adapter.glob("adapter_*"))
            },
            "dtype": artifact.dtype,
        }
    )


def _make(artifact: Artifact, folder: Path) -> None:
    from peft import PeftModel

    from tuning.weights import loading

    model = loading.open_model(replace(artifact, dtype="float32"))
    assert isinstance(model, PeftModel)
    whole = model.merge_and_unload().to(loading.dtype_of(artifact.dtype))
    with whole_directory(folder) as temporary:
        whole.save_pretrained(temporary)
