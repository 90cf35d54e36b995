"""What a person sees while a plan runs: a line for each stage that ends, and one that moves.

On a terminal the last line is redrawn; in a log a line is written now and then instead.
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
    """A stage that is under way, as far as it is shown."""

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
        """A line that stays."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def started(self, stage: Stage) -> None:
        """A stage begins."""
        if not self._terminal:
            self.say(f"         started  {stage.name}")

    def ended(self, stage: Stage, state: str, reason: str, seconds: float | None) -> None:
        """A stage is done, skipped, failed or blocked; what was done before is not news."""
        if not stage.has_work:
            return
        self._ended += 1
        if seconds is None and state == "done":
            return
        took = f"{seconds:6.1f} s" if seconds is not None else " " * 8
        self.say(f"{took} {state:>8}  {stage.name}{': ' + reason if reason else ''}")

    def refresh(self, running: Sequence[InProgress]) -> None:
        """Show how far the running stages are; that one waits is said at once."""
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
        """Name the process that has the run of a stage, once."""
        told = atomic.read_json(entry.progress)
        if told and told["phase"] == "waiting" and entry.stage.name not in self._waiting:
            self._waiting.add(entry.stage.name)
            self.say(told["note"])

    def _describe(self, entry: InProgress) -> str:
        told = atomic.read_json(entry.progress)
        name = entry.stage.name
        if not told:
            return f"{name} starting"
        if told["phase"] == "waiting":
            return f"{name} waiting"
        of = f"{told['at']}/{told['of']}"
        return " ".join(filter(None, (name, told["phase"], of, told["note"])))

    def _clear(self) -> None:
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=sys.stderr)
            self._shown = ""

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._clear()
