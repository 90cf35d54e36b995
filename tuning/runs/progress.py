"""Progress of a stage, for the supervisor that started it: a small file, replaced atomically.

A step that takes minutes, such as a measurement or a batch of answers, tells its parts from
wherever they are counted: they are noted at the position that was reported last.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuning.runs import atomic

PROGRESS_VARIABLE = "TUNING_PROGRESS"
"""Path of that file; not set without a supervisor."""


_steps: list[Callable[[str], None]] = []
"""Reports the last position of this process again, with another note; none before the first."""


def tell(**record: Any) -> None:
    """Write a progress record, if a supervisor asks for it; write errors are ignored."""
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        with contextlib.suppress(OSError):
            atomic.write_json(Path(path), record)


def kills_file(progress: Path) -> Path:
    """Where the stage of a progress file says how many of its trials the kernel killed."""
    return progress.with_suffix(".kills")


def told_kills(progress: Path) -> int:
    """How many that are; 0 where nothing is said."""
    return int((atomic.read_object(kills_file(progress)) or {}).get("kills", 0))


def tell_kills(more: int) -> None:
    """So many processes more were killed by the kernel for lack of memory that were made to try
    whether it would: no sign that the stage itself ran out.
    """
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        with contextlib.suppress(OSError):
            atomic.write_json(kills_file(Path(path)), {"kills": told_kills(Path(path)) + more})


def begin_step(report: Callable[[str], None]) -> None:
    """Let the parts that follow be noted by `report`."""
    _steps[:] = [report]


def tell_part(what: str, at: int, of: int) -> None:
    """Report part `at` of `of` of the present step."""
    for report in _steps:
        report(f"{what} {at}/{of}")


def tell_waiting(why: str) -> None:
    """Report that the stage waits for another process: neither progress nor a stall."""
    tell(directory="", phase="waiting", at=0, of=0, note=why, time=time.time())
