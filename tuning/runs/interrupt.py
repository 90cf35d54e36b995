"""Graceful stop: signals set a flag that the code checks at safe points.

SIGTERM, SIGINT and SIGUSR1 (SLURM's warning before the time limit) set it. Training checks it at
step boundaries, inference between batches; both save and raise Interrupted. A second SIGINT stops
at once. A process started by a launcher also stops when its parent, whose pid is in TUNING_PARENT,
is gone. torchrun does not forward signals: under it, creating the file TUNING_STOP is the request.

All ranks stop at the same step: they call `agreed_to_stop()` of tuning/engine/ranks.py.
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
    """Install the signal handlers and watch the parent; call it once, early, in the main thread."""
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
    """Stop gracefully on signals within the block; restore the previous handlers after it.

    A stop request stays set until it has raised Interrupted. Outside the main thread, where Python
    installs no signal handlers, this does nothing.
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
        print(f"received {signal.Signals(number).name}: saving{again}", file=sys.stderr)
    _asked.set()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _look_for(stop: Path) -> None:
    while not stop.exists():
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def ask_to_stop() -> None:
    """Ask this process to save and stop, as a signal does."""
    _asked.set()


def asked_to_stop() -> bool:
    """Whether to save and stop at the next safe point."""
    return _asked.is_set()


def check() -> None:
    """Raise Interrupted if asked to stop; call it only where everything is saved."""
    if _asked.is_set():
        raise Interrupted


def reset() -> None:
    """Clear the stop request; for programs that run several stages in one process."""
    _asked.clear()
