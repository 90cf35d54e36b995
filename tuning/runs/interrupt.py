"""Being asked to stop: signals become a question that the code asks at safe points.

SIGTERM, SIGINT and SIGUSR1 (SLURM's warning before the time limit) set a flag; training asks it at
step boundaries, inference between batches, and both save and raise Interrupted. A second SIGINT
stops at once. A process that a launcher started also ends when its parent is gone: the parent's
number comes in TUNING_PARENT.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from tuning.runs.errors import Interrupted

PARENT_VARIABLE = "TUNING_PARENT"
_asked = threading.Event()


def install() -> None:
    """Take the signals over and watch the parent; call it once, early, in the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _on_signal)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT and _asked.is_set():
        raise KeyboardInterrupt
    if not _asked.is_set():
        again = " (Ctrl-C again stops at once)" if number == signal.SIGINT else ""
        print(f"asked to stop by {signal.Signals(number).name}: saving{again}", file=sys.stderr)
    _asked.set()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def asked_to_stop() -> bool:
    """Whether to save and stop at the next safe point."""
    return _asked.is_set()


def check() -> None:
    """Raise Interrupted if asked to stop; for points where everything is on disk."""
    if _asked.is_set():
        raise Interrupted


def reset() -> None:
    """Forget what was asked; for tests that run stages inside one process."""
    _asked.clear()
