"""How far a running stage has come: from the file that the supervisor of its job keeps, or, where
no job of an experiment runs it, from whatever writes its run directory.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tuning.runs import atomic
from tuning.runs.json_text import NotJSON, parse_object
from tuning.runs.rundir import RunDirectory

QUIET_SECONDS = 120.0
"""Progress that is older than this is shown with its age."""


def of_job(folder: Path, name: str) -> str:
    """`train 40/125 loss 0.51`, of the newest start of a stage in an experiment, and its age if it
    has become old. `folder`: that of the report.
    """
    places = sorted((folder / "stages").glob(f"*/{name}.json"), key=_written)
    found = _read(places[-1:])
    last = max(_written(place) for place in (*places, folder / "stages" / f"{name}.json"))
    return " ".join(filter(None, (_words(found[0] if found else {}), _age(last))))


def of_directories(home: Path, name: str, directories: Collection[RunDirectory]) -> str:
    """The same of what writes run directories: another experiment on some machine, or a person who
    has started it by hand; the step where it keeps no file, "" if not even that is known.
    """
    paths = {directory.path.resolve() for directory in directories}
    outputs = home / "outputs"
    places = [*outputs.glob(f"reports/*/stages/*/{name}.json"), *outputs.glob("jobs/*/*.json")]
    for place in sorted(places, key=_written, reverse=True):
        for found in _read([place]):
            if found.get("directory") and Path(found["directory"]).resolve() in paths:
                return " ".join(filter(None, (_words(found), _age(_written(place)))))
    return next(filter(None, (_step(path / "metrics.jsonl") for path in paths)), "")


def _read(places: Iterable[Path]) -> list[dict[str, Any]]:
    return [found for place in places if (found := atomic.read_object(place)) is not None]


def _words(progress: dict[str, Any]) -> str:
    words = [str(progress.get("phase", "")) or "starting"]
    if progress.get("directory"):
        words += [f"{progress['at']}/{progress['of']}", progress["note"]]
    return " ".join(filter(None, words))


def _step(metrics: Path) -> str:
    """`step 40` and its age, from the metrics of a training."""
    for line in reversed(tail(metrics).splitlines()):
        try:
            step = parse_object(line, "a line", nan=True).get("step")
        except NotJSON:
            continue
        if isinstance(step, int):
            return " ".join(filter(None, (f"step {step}", _age(_written(metrics)))))
    return ""


def tail(path: Path, size: int = 4096) -> str:
    """The end of a file; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _age(moment: float) -> str:
    """`(no progress for 7 min)` since a moment; "" if it is recent or unknown."""
    seconds = time.time() - moment
    if not moment or seconds < QUIET_SECONDS:
        return ""
    minutes = round(seconds / 60)
    length = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
    return f"(no progress for {length})"
