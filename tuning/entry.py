"""How every entry point starts and ends: a quiet environment, and exit codes with one clear line.

0 done or nothing to do; 2 the user's mistake; 75 saved, start again; 1 everything else.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tuning.runs import disk, log, ranks
from tuning.runs.errors import (
    EXIT_AGAIN,
    EXIT_FAILED,
    EXIT_USER_ERROR,
    Interrupted,
    StageFailed,
    UserError,
)
from tuning.runs.interrupt import EXIT_VARIABLE

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process with its exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    own_folder = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != own_folder]
    log.configure()
    code = exit_code(main)
    _write_down(code)
    sys.exit(code)


def _write_down(code: int) -> None:
    """Leave the exit code where torchrun would not pass it on."""
    path = os.environ.get(EXIT_VARIABLE)
    if path and ranks.under_torchrun() and ranks.is_first():
        Path(path).write_text(str(code))


def exit_code(main: Callable[[], int | None]) -> int:
    """What a call of `main` ends with; the user's mistakes and known failures print one line."""
    try:
        return main() or 0
    except UserError as error:
        return _say(str(error), EXIT_USER_ERROR)
    except StageFailed as error:
        return _say(str(error), EXIT_FAILED)
    except Interrupted:
        return _say("stopped; all is saved, the same command continues", EXIT_AGAIN, "")
    except KeyboardInterrupt:
        return _say("stopped at once; the same command continues from the last checkpoint", 130, "")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in (*disk.ERRORS, errno.EROFS, errno.EACCES):
            raise
        where = f" '{error.filename}'" if error.filename else ""
        return _say(f"{error.strerror}{where}; nothing half-written counts, run again", EXIT_FAILED)


def _say(message: str, code: int, prefix: str = "error: ") -> int:
    print(prefix + " ".join(message.split()), file=sys.stderr, flush=True)
    return code
