"""A run that several processes train together: the first one holds the directory, and tells the
others where it is when work begins, or how it ended before.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path

from tuning.engine import ranks
from tuning.runs.errors import Interrupted, StageFailed, UserError
from tuning.runs.rundir import RunDirectory

Body = Callable[[RunDirectory, list[str]], None]
"""What all processes do: in which directory, and what the training is reported to."""
_WORK, _DONE = "work", "done"
_ENDS = {kind.__name__: kind for kind in (UserError, StageFailed, Interrupted)}


def together(train: Callable[[Body], RunDirectory], body: Body) -> RunDirectory:
    """`train(body)` on the first process, and `body` on the others in the directory that it claims.

    What it raises before work begins is raised by all. The processes part when they exit, since
    those that parted cannot meet again; and not where one failed, since that could wait for it.
    """
    atexit.unregister(ranks.leave)
    ranks.join()
    try:
        directory = _first(train, body) if ranks.rank() == 0 else _other(body)
        ranks.wait()
    except Interrupted:
        atexit.register(ranks.leave)
        raise
    atexit.register(ranks.leave)
    return directory


def _first(train: Callable[[Body], RunDirectory], body: Body) -> RunDirectory:
    told = False

    def tell(what: str, detail: str) -> None:
        nonlocal told
        if not told:
            told = True
            ranks.from_first((what, detail))

    def begin(directory: RunDirectory, report_to: list[str]) -> None:
        tell(_WORK, str(directory.path))
        body(directory, report_to)

    try:
        directory = train(begin)
    except BaseException as error:
        tell(type(error).__name__, str(error))
        raise
    tell(_DONE, str(directory.path))
    return directory


def _other(body: Body) -> RunDirectory:
    what, detail = ranks.from_first(("", ""))
    if what not in (_WORK, _DONE):
        raise _ENDS.get(what, StageFailed)(detail)
    directory = RunDirectory(Path(detail))
    if what == _WORK:
        body(directory, [])
    return directory
