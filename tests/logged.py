"""What the project's code logs while a test runs something."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from tuning.runs.log import logger


class _Kept(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.lines.append(level + record.getMessage())


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The lines that are logged within the block, as an entry point would print them."""
    lines: list[str] = []
    handler = _Kept(lines)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
