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
