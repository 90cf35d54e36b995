"""The project's logger. The entry points attach its one handler with `configure()`; programs that
import the project configure logging as they like.

Info messages go to stdout as they are, warnings to stderr with their level in front. Ranks other
than 0 log errors only.
"""

from __future__ import annotations

import logging
import sys

from tuning.runs import ranks

logger = logging.getLogger("tuning")


class _Handler(logging.Handler):
    """Writes to whatever sys.stdout and sys.stderr are when a message is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.levelno >= logging.WARNING:
                print(f"{record.levelname.lower()}: {text}", file=sys.stderr, flush=True)
            else:
                print(text, flush=True)
        except Exception:
            self.handleError(record)


def configure() -> None:
    """Attach the handler; calling it again changes nothing."""
    if any(isinstance(handler, _Handler) for handler in logger.handlers):
        return
    handler = _Handler()
    handler.addFilter(lambda record: ranks.is_first() or record.levelno >= logging.ERROR)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
