"""Adapters merged into their base, for engines that read whole models only, and bases in 4 bits as
the weights that those bits stand for.

Under TUNING_HOME/cache/merged, by what they are made of, so that an inference that was stopped does
not merge again. A model is used about once: the last KEPT stay, and `tuning clean` removes those
that nobody used for a day.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.runs import interrupt
from tuning.runs.atomic import whole_directory
from tuning.runs.content import file_hash, weights_hash
from tuning.runs.errors import StageFailed
from tuning.runs.identity import digest
from tuning.runs.lock import Lock
from tuning.runs.log import logger
from tuning.weights.artifact import Artifact
from tuning.weights.base import MODEL
from tuning.weights.hub import snapshot_folder

KEPT = 3
"""Merged models that stay, beside those that were used in the last RECENT seconds."""
RECENT = 1800.0


def merged(artifact: Artifact) -> Artifact:
    """The artifact as whole weights: merged in float32, on the CPU, and kept in the precision that
    it is loaded in. Waits for another process that merges the same.
    """
    folder = site.merged_dir() / _identity(artifact)[:16]
    made = folder / MODEL
    with Lock(folder).holding(check=interrupt.check):
        if not made.is_dir():
            logger.info(f"making a whole model of '{artifact.adapter or artifact.base}'")
            merge(artifact, made)
        os.utime(made)
    _prune(folder.parent)
    return replace(artifact, base=str(made), adapter=None, load_in_4bit=False)


def _identity(artifact: Artifact) -> str:
    """A hash over the weights of the base and of the adapter, and the precision."""
    from tuning.weights import loading

    base = Path(artifact.base)
    revision = None if base.is_dir() else snapshot_folder(artifact.base)
    files = sorted(artifact.adapter.glob("adapter_*")) if artifact.adapter else []
    return digest(
        {
            "base": weights_hash(base) if base.is_dir() else artifact.base,
            "revision": revision and revision.name,
            "adapter": {file.name: file_hash(file) for file in files},
            "dtype": str(loading.dtype_of(artifact.dtype)),
            **({"load_in_4bit": True} if artifact.load_in_4bit else {}),
        }
    )


def merge(artifact: Artifact, target: Path) -> None:
    """Write the whole weights of an artifact, its adapter merged in float32, on the CPU, in the
    precision that it is loaded in.
    """
    from tuning.weights import loading

    base = replace(artifact, adapter=None)
    if artifact.load_in_4bit:
        whole: Any = loading.open_model(base).dequantize().to("cpu").float()
        _free_gpu()
    else:
        whole = loading.open_model(replace(base, dtype="float32"), device="cpu")
    if artifact.adapter is not None:
        whole = loading.with_adapter(whole, artifact.adapter).merge_and_unload()
    whole = whole.to(loading.dtype_of(artifact.dtype))
    with whole_directory(target) as temporary:
        whole.save_pretrained(temporary)


def _free_gpu() -> None:
    """Leave no memory of this process to what is no longer on the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _prune(root: Path) -> None:
    """Remove all but the last ones; what a process reads stays readable to it."""
    made = sorted(root.glob(f"*/{MODEL}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in made[KEPT:]:
        if time.time() - path.stat().st_mtime < RECENT:
            continue
        try:
            with Lock(path.parent).holding(wait=False):
                shutil.rmtree(path, ignore_errors=True)
        except StageFailed:
            continue  # somebody uses it again
