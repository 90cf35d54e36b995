"""What the jobs of an experiment used on a cluster, as usage.json beside the report has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.report.formats import UNKNOWN
from tuning.runs import atomic
from tuning.runs.identity import FORMAT


@dataclass(frozen=True, kw_only=True)
class Line:
    """One kind of stage, or all."""

    kind: str
    starts: str
    hours: str
    gpu_hours: str
    core_hours: str
    efficiency: str
    """Share of the core hours in which a core was busy."""
    memory: str
    """The most that was in use, and what that job had asked for."""


def usage(folder: Path) -> list[Line]:
    """A line for each kind of stage and one for all; [] where no accounting told it."""
    found: dict[str, Any] = atomic.read_json(folder / "usage.json") or {}
    if found.get("format") != FORMAT or not found["kinds"]:
        return []
    kinds: dict[str, dict[str, Any]] = found["kinds"]
    total = {name: sum(values[name] for values in kinds.values()) for name in _SUMMED}
    lines = [_line(kind, values) for kind, values in kinds.items()]
    return [*lines, _line("all", total | {"memory": 0, "memory_asked": 0})]


_SUMMED = (
    "starts",
    "seconds",
    "core_seconds",
    "cpu_seconds",
    "ended_core_seconds",
    "gpu_seconds",
)


def _line(kind: str, values: dict[str, Any]) -> Line:
    ended = values["ended_core_seconds"]
    memory, asked = values["memory"], values["memory_asked"]
    share = f" of {_gigabytes(asked)}" if asked else ""
    return Line(
        kind=kind,
        starts=f"{values['starts']:,}",
        hours=_hours(values["seconds"]),
        gpu_hours=_hours(values["gpu_seconds"]) if values["gpu_seconds"] else UNKNOWN,
        core_hours=_hours(values["core_seconds"]),
        efficiency=f"{100 * values['cpu_seconds'] / ended:.0f}%" if ended else UNKNOWN,
        memory=f"{_gigabytes(memory)}{share}" if memory else UNKNOWN,
    )


def _hours(seconds: float) -> str:
    """5400 -> 1.50"""
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}" if hours < 1 else f"{hours:.2f}"


def _gigabytes(size: int) -> str:
    """Bytes as SLURM counts them: in powers of 1024."""
    return f"{size / 1024**3:.2f} GB" if size < 10 * 1024**3 else f"{size / 1024**3:.0f} GB"
