"""Progress of a stage, for the supervisor that started it: a small file, replaced atomically."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from tuning.runs import atomic

PROGRESS_VARIABLE = "TUNING_PROGRESS"
"""Path of that file; not set without a supervisor."""


def tell(**record: Any) -> None:
    """Write a progress record, if a supervisor asks for it; write errors are ignored."""
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        with contextlib.suppress(OSError):
            atomic.write_json(Path(path), record)


def tell_waiting(why: str) -> None:
    """Report that the stage waits for another process: neither progress nor a stall."""
    tell(directory="", phase="waiting", at=0, of=0, note=why, time=time.time())
