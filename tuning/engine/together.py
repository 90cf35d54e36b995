"""One run directory for several ranks: rank 0 holds its lock, and sends the other ranks its path
when work begins, or the error that prevented it.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tuning.runs.errors import Interrupted, StageFailed, UserError
from tuning.runs.ranks import rank, world_size
from tuning.runs.rundir import RunDirectory
from tuning.runs.training import Training

_BEGUN = "begun"
_ERRORS = {kind.__name__: kind for kind in (UserError, StageFailed, Interrupted)}


def on_all_ranks(held: AbstractContextManager[Training]) -> AbstractContextManager[Training]:
    """`held`, entered by rank 0, as a context manager for all ranks; of one process, `held` itself.

    An error that `held` raises on entry is raised on all ranks. The process group is destroyed at
    exit only, since it cannot be re-created, and not after a failure, where that could hang.
    """
    return held if world_size() == 1 else _together(held)


@contextlib.contextmanager
def _together(held: AbstractContextManager[Training]) -> Iterator[Training]:
    from tuning.engine import ranks

    atexit.unregister(ranks.leave)
    ranks.join()
    try:
        with _announced(held) if rank() == 0 else _heard() as training:
            yield training
        ranks.wait()
    except Interrupted:
        atexit.register(ranks.leave)
        raise
    atexit.register(ranks.leave)


@contextlib.contextmanager
def _announced(held: AbstractContextManager[Training]) -> Iterator[Training]:
    """Rank 0: enter `held` and broadcast the directory, or the error."""
    from tuning.engine import ranks

    with contextlib.ExitStack() as stack:
        try:
            training = stack.enter_context(held)
        except BaseException as error:
            ranks.from_first((type(error).__name__, str(error), False))
            raise
        ranks.from_first((_BEGUN, str(training.directory.path), training.done))
        yield training


@contextlib.contextmanager
def _heard() -> Iterator[Training]:
    """The other ranks: receive what rank 0 broadcasts."""
    from tuning.engine import ranks

    what, detail, done = ranks.from_first(("", "", False))
    if what != _BEGUN:
        raise _ERRORS.get(what, StageFailed)(detail)
    yield Training(directory=RunDirectory(Path(detail)), done=done)
