"""What an experiment used on the cluster, from SLURM's accounting: usage.json in the folder of its
report, by kind of stage. The report shows it; without accounting there is no such file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.ledger import Jobs
from tuning.runs import atomic
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.identity import FORMAT


@dataclass(kw_only=True)
class Usage:
    """What all jobs of one kind of stage used, every start of each included."""

    starts: int = 0
    seconds: int = 0
    """From start to end."""
    core_seconds: int = 0
    """Allocated."""
    cpu_seconds: float = 0.0
    """In which a core was busy, of starts that have ended."""
    ended_core_seconds: int = 0
    """Allocated to those."""
    gpu_seconds: int = 0
    """Allocated."""
    memory: int = 0
    """The most that a task had in use, in bytes; 0 if it was not measured."""
    memory_asked: int = 0
    """Allocated to that job, in bytes."""


def update(folder: Path, slurm: Slurm) -> None:
    """Write usage.json of an experiment that was submitted; what SLURM no longer knows, or cannot
    tell now, leaves it as it was.
    """
    arrays = [a for a in Jobs(folder).arrays() if a.number is not None and a.kind != "report"]
    if not arrays:
        return
    try:
        lines = slurm.accounts([array.number for array in arrays if array.number is not None])
    except (StageFailed, UserError):
        return
    kinds = {str(array.number): array.kind for array in arrays}
    if found := by_kind(lines, kinds):
        values = {kind: asdict(usage) for kind, usage in found.items()}
        atomic.write_json(folder / "usage.json", {"format": FORMAT, "kinds": values})


def by_kind(lines: Iterable[Mapping[str, str]], kinds: Mapping[str, str]) -> dict[str, Usage]:
    """{kind: what it used} of lines of sacct, a line a start and one a step below it; `kinds` has
    the kind of each array by its number.
    """
    found: dict[str, Usage] = {}
    asked = 0
    for line in lines:
        job, _, step = line["JobID"].partition(".")
        kind = kinds.get(job.partition("_")[0])
        if kind is None or not size(line["ElapsedRaw"]):
            continue
        usage = found.setdefault(kind, Usage())
        if not step:
            asked = _count(line)["mem"]
            _add(usage, line)
        elif (memory := size(line["MaxRSS"])) > usage.memory:
            usage.memory, usage.memory_asked = memory, asked
    return found


def _add(usage: Usage, line: Mapping[str, str]) -> None:
    """Add one start."""
    elapsed, cores = size(line["ElapsedRaw"]), size(line["CPUTimeRAW"])
    usage.starts += 1
    usage.seconds += elapsed
    usage.core_seconds += cores
    usage.gpu_seconds += elapsed * _count(line)["gres/gpu"]
    if line["State"].split()[:1] != ["RUNNING"]:
        usage.cpu_seconds += seconds(line["TotalCPU"])
        usage.ended_core_seconds += cores


def _count(line: Mapping[str, str]) -> dict[str, int]:
    """The GPUs and the memory of `cpu=2,gres/gpu=1,mem=4000M,node=1`."""
    parts = dict(part.partition("=")[::2] for part in line["AllocTRES"].split(","))
    return {"gres/gpu": size(parts.get("gres/gpu", "")), "mem": size(parts.get("mem", ""))}


def size(text: str) -> int:
    """Bytes of `123456K` or `2.50G`, or a number of anything else; 0 for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([KMGTP]?)", text)
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")) if found else 0


def seconds(text: str) -> float:
    """Seconds of `MM:SS.mmm`, `HH:MM:SS` or `D-HH:MM:SS`; 0 for nothing and for INVALID."""
    if not re.fullmatch(r"(\d+-)?(\d+:)*\d+(\.\d*)?", text):
        return 0.0
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)
