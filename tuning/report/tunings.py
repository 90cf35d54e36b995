"""How the trainings of an experiment were tuned, from the files that the tuning left in their run
directories: autotune.json, the choice, and autotune.svg, its picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.plan import Plan, standing
from tuning.runs import atomic
from tuning.runs.json_text import NotJSON

_SOURCES = {
    "search": "Found by {trials} trials in {seconds:.0f} seconds",
    "cache": "Found before, by {trials} trials",
    "default": "Nothing was found, and the run's own settings were used",
}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One choice, and the runs that were trained by it."""

    runs: tuple[str, ...]
    text: str
    svg: str = ""
    """The picture of its trials; "" if there is none."""


def tunings(plan: Plan, home: Path) -> list[Tuning]:
    """The choices of a plan's runs in order, each once."""
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for stage in plan.stages:
        run = standing(plan, stage, home).run if stage.trains else None
        if run is None:
            continue
        with contextlib.suppress(NotJSON):
            if choice := atomic.read_object(run.path / "autotune.json"):
                found.setdefault(str(choice.get("key")), []).append((run.path, choice))
    return [_tuning(runs) for runs in found.values()]


def _tuning(runs: Iterable[tuple[Path, dict[str, Any]]]) -> Tuning:
    """The choice that several runs share; that of the run that searched is told."""
    listed = list(runs)
    path, choice = next((r for r in listed if r[1].get("source") == "search"), listed[0])
    how = _SOURCES.get(str(choice.get("source")), "")
    with contextlib.suppress(KeyError, ValueError, TypeError):
        how = how.format(trials=choice["trials"], seconds=choice["seconds"])
    error = choice.get("prediction_error")
    texts = [how, str(choice.get("why") or ""), f"predictions: {error}" if error else ""]
    return Tuning(
        runs=tuple(run.name for run, _ in listed),
        text=". ".join(filter(None, texts)),
        svg=_picture(path / "autotune.svg"),
    )


def _picture(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
        return text if text.startswith("<svg") else ""
    return ""
