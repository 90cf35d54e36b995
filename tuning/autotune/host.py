"""The devices that a search tunes for, and the memory and the time that it may use. No torch here:
CUDA is asked in a process of its own.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from tuning.autotune.config import AutotuneConfig
from tuning.autotune.process import probe
from tuning.autotune.workload import Device
from tuning.runs import memory, provenance

DEFAULT_SECONDS = 600.0
SHARE_OF_JOB = 0.1
"""Of what is left of the job, for a search without --time_budget."""
SPARE = 0.05
"""Of the host's memory, left to the process that tunes and to everything else, unless the cap is
given."""


def host_limit(search: AutotuneConfig) -> int:
    """Bytes of host memory that all processes of a trial may have."""
    if search.cap_bytes is not None:
        return search.cap_bytes
    return int(memory.host_memory() * (1 - SPARE))


def device_of(search: AutotuneConfig, processes: int, folder: Path) -> Device:
    """The device of each of `processes` ranks; on a CPU its share of the host's memory."""
    if not provenance.gpus():
        share = host_limit(search) // processes
        return Device(name=cpu_name(), capacity=share, count=processes)
    found = probe(folder)
    return Device.named(str(found["name"]), int(found["memory"]), count=processes)


def cpu_name() -> str:
    """What the processor is called, and how many threads this process has of it."""
    name = platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    threads = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    return f"{name}, {threads} threads"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def budget_of(search: AutotuneConfig, environ: Mapping[str, str] = os.environ) -> float:
    """Seconds that a search may take."""
    if search.time_budget is not None:
        return search.time_budget
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return max(1.0, SHARE_OF_JOB * (int(end) - time.time()))
    return DEFAULT_SECONDS
