"""The devices that a search tunes for, and the memory and the time that it may use. No torch here:
CUDA is asked in a process of its own.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuning.autotune.config import AutotuneConfig
from tuning.autotune.process import probe
from tuning.autotune.workload import Device
from tuning.runs import atomic, memory, provenance
from tuning.runs.identity import digest

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
    found = _known(folder)
    return Device.named(str(found["name"]), int(found["memory"]), count=processes)


def _known(scratch: Path) -> dict[str, Any]:
    """What CUDA says of the GPUs; asked once on a machine, as far as nvidia-smi can tell that they
    are the same.
    """
    if shutil.which("nvidia-smi") is None:
        return probe(scratch)
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    which = digest([platform.node(), provenance.gpus(), listed.stdout])[:16]
    path = scratch.parent.parent / "devices" / f"{which}.json"
    if listed.returncode == 0 and (found := atomic.read_object(path)) is not None:
        return found
    found = probe(scratch)
    atomic.write_json(path, found)
    return found


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
