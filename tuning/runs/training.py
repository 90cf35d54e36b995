"""The training phase of a run in its directory, whoever does the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tuning.runs import disk, manifest
from tuning.runs.rundir import RunDirectory


def train_in(
    claimed: AbstractContextManager[RunDirectory], body: Callable[[RunDirectory], None]
) -> RunDirectory:
    """Do `body` in the directory that `claim()` holds, unless it was done meanwhile; what was kept
    to resume from goes when it is done.
    """
    with claimed as directory:
        if directory.done("train"):
            print(f"{directory.name}: already trained")
            return directory
        with directory.phase("train"), disk.reporting_full(directory.path, directory.path):
            body(directory)
        manifest.drop(directory.path)
        print(f"{directory.name}: trained")
        return directory
