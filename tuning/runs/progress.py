"""How far a stage is, for the supervisor that started it: a small file, replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from tuning.runs import atomic

PROGRESS_VARIABLE = "TUNING_PROGRESS"
"""Names the file."""


def tell(**record: Any) -> None:
    """Write where the stage is, if somebody wants to know."""
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        with contextlib.suppress(OSError):
            atomic.write_json(Path(path), record)


def tell_waiting(why: str) -> None:
    """The stage waits for another process; that is no progress, and no lack of it."""
    tell(directory="", phase="waiting", at=0, of=0, note=why, time=time.time())
