"""The training phase of a run directory, for stages and for programs that call the engine."""

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
    """The run directory to train in; `done` if it is trained already."""

    directory: RunDirectory
    done: bool = False
    report_to: tuple[str, ...] = ()
    """Where metrics are reported besides metrics.jsonl: `wandb`, or nothing."""


@contextlib.contextmanager
def training_in(claimed: AbstractContextManager[RunDirectory]) -> Iterator[Training]:
    """Run the block as the training phase of a claimed directory. If that is `done`, the block must
    not train; otherwise checkpoints to resume from are deleted when the block succeeds.
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
