"""Carries out steps one after the other, each in a process group of its own, within a budget.

A step is a command that appends rows to a file. Whatever becomes of it, the rows that it has
written count, and one more says how it ended if that was not well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import rows
from benchmarks.gpu_checks.rows import Row

POLL = 0.05
ENDED = 10.0
"""Seconds that a killed process gets to go; one that hangs in a driver never does."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A step as it is started; the name of the file for its rows is added to `words`."""

    name: str
    words: Sequence[str]
    limit: float
    """Seconds."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Report:
    """The rows so far: told on standard error as they come, and written after each one."""

    def __init__(self, output: Path | None, about: Mapping[str, Any]) -> None:
        self.output = output
        self.about = dict(about)
        self.rows: list[Row] = []
        self.write(complete=False)  # a file that cannot be written is no surprise after minutes
        _say(rows.heading())

    def add(self, found: Row) -> None:
        """One more row."""
        self.rows.append(found)
        _say(rows.line(found))
        self.write(complete=False)

    def write(self, *, complete: bool) -> None:
        """Write everything so far, whole or not at all; `complete`: nothing will follow."""
        if self.output is None:
            return
        text = json.dumps(self.about | {"complete": complete, "rows": self.rows}, indent=1)
        temporary = self.output.with_name(f".{self.output.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.output)

    def table(self) -> str:
        """All rows."""
        return "\n".join([rows.heading(), *map(rows.line, self.rows)])

    @property
    def well(self) -> bool:
        """Whether every row is ok or skipped."""
        return all(found["status"] in rows.GOOD for found in self.rows)


def carry_out(
    commands: Sequence[Command],
    budget: float,
    folder: Path,
    environment: Mapping[str, str],
    report: Report,
) -> None:
    """Run the commands within `budget` seconds; `folder` gets their rows and logs.

    A command begins only if its limit is left: then it is never ended for what others took.
    """
    end = time.monotonic() + budget
    for command in commands:
        left = max(0.0, end - time.monotonic())
        if left < command.limit:
            why = f"may take {command.limit:.0f} s, and {left:.0f} s of the budget are left"
            report.add(rows.row(command.name, "", rows.SKIPPED, why))
            continue
        _run(command, folder, environment, report.add)


def _run(
    command: Command,
    folder: Path,
    environment: Mapping[str, str],
    add: Callable[[Row], None],
) -> None:
    """One step to its end, or to its limit."""
    found, log = folder / f"{command.name}.rows.jsonl", folder / f"{command.name}.log"
    started = time.monotonic()
    told = 0

    def tell() -> None:
        nonlocal told
        for row in rows.read(found, told):
            told += 1
            add(row)

    with _started([*command.words, str(found)], log, environment) as process:
        while process.poll() is None and time.monotonic() - started < command.limit:
            time.sleep(POLL)
            tell()
        code = process.poll()
    tell()
    seconds = time.monotonic() - started
    if code is None:
        text = f"ended after {command.limit:.0f} s; its last words: {rows.last_words(log)}"
        add(rows.row(command.name, "", rows.LIMIT, text, seconds))
    elif code != 0:
        add(rows.row(command.name, "", *_ending(code, log), seconds))
    elif told == 0:
        add(rows.row(command.name, "", rows.CRASHED, "ended without a row", seconds))


@contextlib.contextmanager
def _started(
    words: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; nothing of the group is left afterwards."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDED)


def _ending(code: int, log: Path) -> tuple[str, str]:
    """(status, reason) of a step that ended with another exit code than 0."""
    words = rows.last_words(log)
    if rows.lacked_memory(log):
        return rows.MEMORY, words
    if code < 0:
        with contextlib.suppress(ValueError):
            return rows.CRASHED, f"by {signal.Signals(-code).name}; its last words: {words}"
    return rows.CRASHED, f"exit code {code}: {words}"
