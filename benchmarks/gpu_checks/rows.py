"""What a step of gpu_smoke.py finds: rows, which it appends to a file as it goes; and its log."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED, CRASHED = "ok", "failed", "skipped", "crashed"
MEMORY, LIMIT = "out of memory", "time limit"
GOOD = (OK, SKIPPED)
WIDTHS = (13, 31, 13, 7)
WIDTH = 150
NO_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "CUDA error: out of memory")
Row = dict[str, Any]
"""step, what, status, seconds, says (for people) and values (for programs)."""


def row(step: str, what: str, status: str, says: str, seconds: float = 0.0, **values: Any) -> Row:
    """A row of the table."""
    says = " ".join(says.split())
    return {
        "step": step,
        "what": what,
        "status": status,
        "seconds": round(seconds, 1),
        "says": says,
        "values": values,
    }


def append(path: Path, found: Row) -> None:
    """Add a row to the file of a step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def read(path: Path, after: int = 0) -> list[Row]:
    """The whole rows of a step's file from row `after` on."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()[after:]]


def last_words(log: Path) -> str:
    """The last error of the project that a process told, or else the last line that it wrote, at
    most 300 characters of it.
    """
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or ["none"])[-1][:300]


def lacked_memory(log: Path) -> bool:
    """Whether a process says that it found no memory on the GPU."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return any(sign in text for sign in NO_MEMORY)


def heading() -> str:
    """The first line of the table."""
    return _cells(("step", "what", "status", "s"), "found")


def line(found: Row) -> str:
    """A row of the table; long ones go on in further lines."""
    seconds = f"{found['seconds']:.1f}"
    room = WIDTH - sum(WIDTHS) - len(WIDTHS)
    first, *more = textwrap.wrap(found["says"], room) or [""]
    cells = _cells((found["step"], found["what"], found["status"], seconds), first)
    return "\n".join([cells, *(_cells(("", "", "", ""), part) for part in more)])


def _cells(cells: Sequence[str], last: str) -> str:
    *texts, number = cells
    start = " ".join(f"{text:{width}}" for text, width in zip(texts, WIDTHS, strict=False))
    return f"{start} {number:>{WIDTHS[-1]}} {last}".rstrip()
