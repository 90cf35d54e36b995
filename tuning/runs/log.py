"""What the project's code reports while it runs, by way of `logging`: one logger, one handler.

Notes go to stdout as they are, warnings to stderr. Of several processes that train together, rank
0 reports. Programs that import the project configure logging as they like; its own entry points
call `configure()`.
"""

from __future__ import annotations

import logging
import sys

from tuning.runs import ranks

logger = logging.getLogger("tuning")


class _Handler(logging.Handler):
    """Writes to the streams that are current when a message comes."""

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
    """Show what is logged; calling it again changes nothing."""
    if any(isinstance(handler, _Handler) for handler in logger.handlers):
        return
    handler = _Handler()
    handler.addFilter(lambda record: ranks.is_first() or record.levelno >= logging.ERROR)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
