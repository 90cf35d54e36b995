"""The progress of a plan for people: a line for each stage that ends, and a progress line.

On a terminal the progress line is redrawn; in a log it is written every 20 seconds.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tuning.plan import Plan, Stage
from tuning.runs import atomic

LOG_SECONDS = 20.0
LOOK_SECONDS = 0.25


class InProgress(Protocol):
    """A running stage, as far as it is shown."""

    @property
    def stage(self) -> Stage: ...

    @property
    def progress(self) -> Path: ...


class Display:
    """Prints the progress of a plan to stderr."""

    def __init__(self, plan: Plan) -> None:
        self._total = sum(stage.has_work for stage in plan.stages)
        self._ended = 0
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._looked = 0.0
        self._shown = ""
        self._waiting: set[str] = set()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def started(self, stage: Stage) -> None:
        """Show that a stage starts."""
        if not self._terminal:
            self.say(f"         started  {stage.name}")

    def ended(self, stage: Stage, state: str, reason: str, seconds: float | None) -> None:
        """Show how a stage ended; nothing for one that was done before this launch."""
        if not stage.has_work:
            return
        self._ended += 1
        if seconds is None and state == "done":
            return
        took = f"{seconds:6.1f} s" if seconds is not None else " " * 8
        self.say(f"{took} {state:>8}  {stage.name}{': ' + reason if reason else ''}")

    def refresh(self, running: Sequence[InProgress]) -> None:
        """Show the progress of the running stages; that one is waiting, at once."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            for entry in running:
                self._say_waiting(entry)
        every = LOOK_SECONDS if self._terminal else LOG_SECONDS
        if not running or now - self._last < every:
            return
        self._last = now
        parts = [self._describe(entry) for entry in running]
        line = f"[{self._ended}/{self._total}] " + " | ".join(parts)
        if not self._terminal:
            self.say(line)
            return
        width = shutil.get_terminal_size().columns
        self._clear()
        self._shown = line[: width - 1]
        print(self._shown, end="", file=sys.stderr, flush=True)

    def _say_waiting(self, entry: InProgress) -> None:
        """Name the process that holds the run of a stage, once."""
        progress = atomic.read_object(entry.progress)
        if progress and progress["phase"] == "waiting" and entry.stage.name not in self._waiting:
            self._waiting.add(entry.stage.name)
            self.say(progress["note"])

    def _describe(self, entry: InProgress) -> str:
        progress = atomic.read_object(entry.progress)
        name = entry.stage.name
        if not progress:
            return f"{name} starting"
        if progress["phase"] == "waiting":
            return f"{name} waiting"
        of = f"{progress['at']}/{progress['of']}"
        return " ".join(filter(None, (name, progress["phase"], of, progress["note"])))

    def _clear(self) -> None:
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=sys.stderr)
            self._shown = ""

    def close(self) -> None:
        """Erase the progress line."""
        self._clear()
