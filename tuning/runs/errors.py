"""Exit codes of the entry points, and the exceptions that lead to them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_AGAIN = 75
"""Saved and stopped on request; the same command resumes (EX_TEMPFAIL of sysexits.h)."""
EXIT_QUIT = 130
"""Ended by Ctrl-C, as shells write it."""

STARTED_AGAIN = "TUNING_STARTED_AGAIN"
"""Environment variable of a process that was put in place of one that ended with Afresh."""


class UserError(Exception):
    """A mistake that the user can fix; printed as one line, exit code 2."""


class StageFailed(Exception):
    """A stage failed for a known reason; printed as one line, exit code 1."""


class InUse(StageFailed):
    """Another process holds what was asked for without waiting."""


class Skipped(Exception):
    """A stage has nothing to do, because of `met_by_base`, `unreached` or `no_budget_left`; printed
    as one line, exit code 0.
    """

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__(reason)
        self.cause = cause


class Interrupted(Exception):
    """Stopped on request with everything saved; exit code 75."""


class Afresh(Exception):
    """The rest of a stage is for a process in which nothing is imported yet: the same command does
    it. `tuning.entry.run` starts that in place of this process.
    """


class Quit(Exception):
    """Ctrl-C where nothing was being trained; its text, if any, is one line, exit code 130."""


def cut(value: object, most: int = 100) -> str:
    """A value as an error names it: its beginning where it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(value: str, allowed: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or "" if no allowed value is close."""
    matches = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def choose(kind: str, value: str, allowed: Iterable[str], hint: str = "") -> str:
    """Return `value` if it is one of `allowed`, or raise UserError with the nearest match."""
    options = list(allowed)
    if value in options:
        return value
    raise UserError(
        f"unknown {kind} '{cut(value)}'; choose from: {', '.join(options)}."
        f"{nearest(value, options)}{' ' + hint if hint else ''}"
    )
