"""A full disk or quota: recognised whichever library hits it, and reported in one line."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from tuning.runs import manifest
from tuning.runs.errors import StageFailed

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OTHER = "put TUNING_HOME on another file system"
_GONE = [
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO, errno.ENXIO),
    *(errno.ENODEV, errno.EBUSY, errno.EAGAIN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EDEADLK),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH),
]
REFUSALS = {
    **dict.fromkeys(ERRORS, "free space"),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP), _OTHER),
    **dict.fromkeys(_GONE, "the file system failed; wait until it answers"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable for you"),
    errno.ENAMETOOLONG: "choose shorter names",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    errno.ENOMEM: "use a machine with more memory",
}
"""What a machine may refuse, by the number of the error, and what to do."""
_SIGNS = (
    "no space left",
    "file too large",
    "disk quota",
    "pytorchstreamwriter",
    "unexpected pos",
)


def is_full(error: BaseException) -> bool:
    """Whether an exception, or one in its `__context__` chain, comes from a full disk or quota."""
    if isinstance(error, OSError) and error.errno in ERRORS:
        return True
    text = str(error).lower()
    if isinstance(error, Exception) and any(sign in text for sign in _SIGNS):
        return True
    return error.__context__ is not None and is_full(error.__context__)


@contextlib.contextmanager
def reporting_full(run_dir: Path, written: Path) -> Iterator[None]:
    """Turn a write to a full disk into a StageFailed that names the newest whole checkpoint.

    `written`, the incomplete folder, is deleted unless it is `run_dir` itself.
    """
    try:
        yield
    except StageFailed:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        if written != run_dir:
            shutil.rmtree(written, ignore_errors=True)
        newest = manifest.newest_whole(run_dir)
        left = f"the last whole checkpoint is {newest.name}" if newest else "there is no checkpoint"
        raise StageFailed(
            f"{written.name} could not be written ({' '.join(str(error).split())[:120]}); {left}. "
            "Free space and run the same command again."
        ) from error
