"""Being asked to stop: signals become a question that the code asks at safe points.

SIGTERM, SIGINT and SIGUSR1 (SLURM's warning before the time limit) set a flag; training checks it
at step boundaries, inference between batches, and both save and raise Interrupted. A second SIGINT
stops at once. A process that a launcher started also stops when its parent, whose process id
TUNING_PARENT gives, is gone. torchrun does not forward signals: under it, the appearance of the
file that TUNING_STOP names is a request to stop as well.

Processes that train together stop together: they ask `agreed_to_stop()` of tuning/engine/ranks.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tuning.runs import ranks
from tuning.runs.errors import Interrupted

PARENT_VARIABLE = "TUNING_PARENT"
STOP_VARIABLE = "TUNING_STOP"
POLL_SECONDS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_asked = threading.Event()


def install() -> None:
    """Take the signals over and watch the parent; call it once, early, in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    joined = ranks.under_torchrun()
    parent = os.environ.get(PARENT_VARIABLE)
    if parent and (not joined or parent == str(os.getppid())):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if joined and (stop := os.environ.get(STOP_VARIABLE)):
        threading.Thread(target=_look_for, args=(Path(stop),), daemon=True).start()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Signals are questions within the block, and what they were to the program before it.

    What was asked counts until it has led to Interrupted. Outside the main thread, where signals
    cannot be taken over, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install()
    try:
        yield
    except Interrupted:
        reset()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT and _asked.is_set():
        raise KeyboardInterrupt
    if not _asked.is_set():
        again = " (Ctrl-C again stops at once)" if number == signal.SIGINT else ""
        print(f"asked to stop by {signal.Signals(number).name}: saving{again}", file=sys.stderr)
    _asked.set()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _look_for(stop: Path) -> None:
    while not stop.exists():
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def asked_to_stop() -> bool:
    """Whether to save and stop at the next safe point."""
    return _asked.is_set()


def check() -> None:
    """Raise Interrupted if asked to stop; for points where everything is on disk."""
    if _asked.is_set():
        raise Interrupted


def reset() -> None:
    """Forget what was asked; for programs that run several stages inside one process."""
    _asked.clear()
