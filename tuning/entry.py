"""Start and end of every entry point: quiet libraries, one line per error, exit codes.

0 done or skipped; 2 user error; 75 stopped and saved, run again to resume; 130 ended by Ctrl-C;
1 everything else.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from tuning.runs import disk, lean_imports, log, outcome
from tuning.runs.errors import (
    EXIT_AGAIN,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_QUIT,
    EXIT_USER_ERROR,
    STARTED_AGAIN,
    Afresh,
    Interrupted,
    Quit,
    Skipped,
    StageFailed,
    UserError,
)
from tuning.runs.outcome import EXIT_VARIABLE, Outcome

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def run(main: Callable[[], int | None]) -> None:
    """Call `main`, record its outcome for a supervisor, and exit with its code."""
    environment = dict(os.environ)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    lean_imports.install()
    _print_whatever()
    own_folder = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if not _is(path, own_folder)]
    log.configure()
    path = outcome.path()
    os.environ.pop(EXIT_VARIABLE, None)  # the file is for this process, not for those it starts
    try:
        found = ending(main)
    except Afresh:
        _start_again(environment)
    except Exception as error:
        if path:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            outcome.record(path, Outcome(code=EXIT_FAILED, reason=reason))
        raise
    if path:
        outcome.record(path, found)
    sys.exit(found.code)


def _start_again(environment: Mapping[str, str]) -> NoReturn:
    """Put the same command in place of this process: with its number, and the environment that it
    had, to which libraries add. What `--force` asked for is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    words = [sys.executable, *(word for word in sys.orig_argv[1:] if word != "--force")]
    os.execve(sys.executable, words, {**environment, STARTED_AGAIN: "1"})


def _is(path: str, folder: Path) -> bool:
    """Whether a path is this folder; a relative one may start at a folder that is gone."""
    try:
        return Path(path).resolve() == folder
    except OSError:
        return False


def _print_whatever() -> None:
    """Let the terminal show `?` for a character that it does not have, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")


def exit_code(main: Callable[[], int | None]) -> int:
    """The exit code of a call of `main`; user errors and known failures print one line."""
    return ending(main).code


def ending(main: Callable[[], int | None]) -> Outcome:
    """The outcome of a call of `main`; user errors and known failures print one line."""
    try:
        return Outcome(code=main() or 0)
    except Skipped as skipped:
        log.logger.info(f"skipped: {skipped}")
        return Outcome(code=EXIT_DONE, reason=str(skipped), skipped=skipped.cause)
    except UserError as error:
        return _ended(str(error), EXIT_USER_ERROR)
    except StageFailed as error:
        return _ended(str(error), EXIT_FAILED)
    except Interrupted:
        return _ended("stopped; everything is saved, the same command resumes", EXIT_AGAIN, "")
    except KeyboardInterrupt:
        text = "stopped at once; the same command resumes from the last checkpoint"
        return _ended(text, EXIT_QUIT, "")
    except Quit as quit:
        return _ended(str(quit), EXIT_QUIT, "")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Outcome(code=EXIT_FAILED)
    except OSError as error:
        if not error.strerror or (error.filename is None and error.errno not in disk.REFUSALS):
            raise
        where = f" '{error.filename}'" if error.filename is not None else ""
        todo = disk.REFUSALS.get(error.errno or 0, "fix that")
        text = f"{error.strerror}{where}; {todo} and run again; half-written files are ignored"
        return _ended(text, EXIT_FAILED)


def _ended(message: str, code: int, prefix: str = "error: ") -> Outcome:
    message = " ".join(message.split())
    if message:
        print(prefix + message, file=sys.stderr, flush=True)
    return Outcome(code=code, reason=message)
