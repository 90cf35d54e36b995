"""How a stage process ended, recorded for its supervisor in the file that TUNING_EXIT names.

The exit code alone does not say that the stage was skipped, nor why it failed, and torchrun does
not forward it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tuning.runs import atomic, ranks
from tuning.runs.errors import EXIT_AGAIN, EXIT_DONE

EXIT_VARIABLE = "TUNING_EXIT"
"""Path of that file; not set without a supervisor."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a stage process."""

    code: int
    """Its exit code, or -N if it was killed by signal N."""
    reason: str = ""
    """Why it failed or was skipped, in one line."""
    skipped: str = ""
    """`Skipped.cause` of a stage that had nothing to do."""


def path() -> Path | None:
    """The file to write to; None without a supervisor."""
    named = os.environ.get(EXIT_VARIABLE)
    return Path(named) if named else None


def record(path: Path, outcome: Outcome) -> None:
    """Write the outcome of this process, unless another rank of the stage has failed already.

    Every rank records a failure; only rank 0 records that the stage is done or stopped.
    """
    well = (EXIT_DONE, EXIT_AGAIN)
    with contextlib.suppress(OSError):
        reports = outcome.code not in well or ranks.is_first()
        if reports and code_of(path) in (None, *well):
            write(path, outcome)


def write(path: Path, outcome: Outcome) -> None:
    """Write an outcome; an existing one is replaced."""
    atomic.write_json(path, asdict(outcome))


def forget() -> None:
    """Remove what this process or a child of it has recorded."""
    if (found := path()) is not None:
        found.unlink(missing_ok=True)


def read(path: Path) -> Outcome | None:
    """The recorded outcome; None if the process ended without one, for example when killed."""
    values = atomic.read_object(path)
    return Outcome(**values) if values is not None else None


def code_of(path: Path) -> int | None:
    """The recorded exit code; None if there is no outcome."""
    outcome = read(path)
    return outcome.code if outcome else None
