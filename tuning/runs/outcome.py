"""How a stage process ended, for the supervisor that started it: a record in the file that
TUNING_EXIT names.

The exit code alone does not say that there was nothing to do, nor why something failed, and
torchrun does not forward it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tuning.runs import atomic, ranks
from tuning.runs.errors import EXIT_AGAIN, EXIT_DONE

EXIT_VARIABLE = "TUNING_EXIT"
"""Names the file."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a stage process."""

    code: int
    """Its exit code, or -N if it was killed by signal N."""
    reason: str = ""
    """Why it failed or was skipped, in one line."""
    skipped: str = ""
    """Of a stage that had nothing to do: why, as `Skipped.why` has it."""


def path() -> Path | None:
    """The file to write to; None for a process that nobody supervises."""
    named = os.environ.get(EXIT_VARIABLE)
    return Path(named) if named else None


def record(path: Path, found: Outcome) -> None:
    """Write the outcome of this process, unless another rank of the stage failed before it.

    Of several ranks, every one reports a failure, and rank 0 alone that the stage is done or
    stopped.
    """
    well = (EXIT_DONE, EXIT_AGAIN)
    with contextlib.suppress(OSError):
        reports = found.code not in well or ranks.is_first()
        if reports and code_of(path) in (None, *well):
            write(path, found)


def write(path: Path, found: Outcome) -> None:
    """Write an outcome, in place of any other."""
    atomic.write_json(path, asdict(found))


def read(path: Path) -> Outcome | None:
    """The outcome that was recorded; None for a process that ended without one."""
    found = atomic.read_json(path)
    return Outcome(**found) if found is not None else None


def code_of(path: Path) -> int | None:
    """The recorded exit code."""
    found = read(path)
    return found.code if found else None
