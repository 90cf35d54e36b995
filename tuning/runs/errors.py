"""What a run may end with: the exit codes of every entry point and the errors that lead to them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_AGAIN = 75
"""Saved and stopped on request: the same command continues where it stopped (BSD's EX_TEMPFAIL)."""


class UserError(Exception):
    """Something that the user can put right; printed as one line, exit code 2."""


class StageFailed(Exception):
    """A stage cannot go on for a reason that is known; printed as one line, exit code 1."""


class Skipped(Exception):
    """A stage that has nothing to do, and its cause: `met_by_base`, `unreached` or
    `no_budget_left`; printed as one line, exit code 0.
    """

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__(reason)
        self.cause = cause


class Interrupted(Exception):
    """Everything is on disk and the process was asked to stop; exit code 75."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or "" where nothing is near."""
    matches = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def choose(kind: str, value: str, allowed: Iterable[str], hint: str = "") -> str:
    """`value` if it is one of `allowed`; otherwise a UserError that names the nearest match."""
    options = list(allowed)
    if value in options:
        return value
    raise UserError(
        f"unknown {kind} '{value}'; choose from: {', '.join(options)}."
        f"{nearest(value, options)}{' ' + hint if hint else ''}"
    )
