"""The training phase of a run in its directory, whoever does the work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tuning.runs import disk, manifest
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Training:
    """The directory to train in, and whether that is done already."""

    directory: RunDirectory
    done: bool = False
    report_to: tuple[str, ...] = ()
    """What the training is reported to beside metrics.jsonl: `wandb`, or nothing."""


@contextlib.contextmanager
def training_in(claimed: AbstractContextManager[RunDirectory]) -> Iterator[Training]:
    """Train within this block, in the directory that `claim()` holds, unless `done`; checkpoints to
    resume from are dropped when it ends well.
    """
    with claimed as directory:
        if directory.done("train"):
            logger.info(f"{directory.name}: already trained")
            yield Training(directory=directory, done=True)
            return
        with directory.phase("train"), disk.reporting_full(directory.path, directory.path):
            yield Training(directory=directory)
        manifest.drop(directory.path)
        logger.info(f"{directory.name}: trained")
