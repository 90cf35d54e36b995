"""The memory of this machine, of its cgroup or job, and of processes; from /proc and /sys."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

UNLIMITED = 1 << 60
OOM_SIGNS = (
    "out of memory",
    "outofmemory",
    "memoryerror",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "failed to allocate",
    "bad_alloc",
)
"""What CUDA's allocator, cuBLAS, cuDNN, NCCL, PyTorch on a CPU, the C++ library and the kernel say;
in lower case."""


def oom_kills() -> int:
    """How often the kernel killed for lack of memory in this process's cgroup; 0 if unknown."""
    for folder in _cgroups():
        with contextlib.suppress(OSError, ValueError, IndexError):
            name = "memory.events" if (folder / "memory.events").exists() else "memory.oom_control"
            words = (folder / name).read_text().split()
            return int(words[words.index("oom_kill") + 1])
    return 0


def host_memory(environ: Mapping[str, str] = os.environ) -> int:
    """Bytes that this process and its children may use: the least of what the machine has, its
    cgroup allows, and the SLURM job was given.
    """
    limits = [_of_machine(), _of_cgroups(), _of_job(environ)]
    return min(limits)


def resident(pid: int) -> int:
    """Bytes of a process in memory; 0 if it is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def peak_resident() -> int:
    """The most bytes that this process had in memory; what it was started from does not count, as
    it does in getrusage.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def family(pid: int) -> list[int]:
    """A process and all its descendants; without those that are gone."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def _of_machine() -> int:
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return UNLIMITED


def _of_cgroups() -> int:
    """The least limit of the cgroups that this process is in, and of those above them."""
    least = UNLIMITED
    for folder in _cgroups():
        for place in (folder, *folder.parents):
            for name in ("memory.max", "memory.limit_in_bytes"):
                with contextlib.suppress(OSError, ValueError):
                    least = min(least, int((place / name).read_text()))
            if place == Path("/sys/fs/cgroup"):
                break
    return least


def _of_job(environ: Mapping[str, str]) -> int:
    """What a SLURM job was given on this node, in bytes; it says so in MiB."""
    with contextlib.suppress(KeyError, ValueError):
        return int(environ["SLURM_MEM_PER_NODE"]) * 2**20 or UNLIMITED
    with contextlib.suppress(KeyError, ValueError):
        cores = environ.get("SLURM_CPUS_ON_NODE") or environ["SLURM_CPUS_PER_TASK"]
        return int(environ["SLURM_MEM_PER_CPU"]) * int(cores) * 2**20 or UNLIMITED
    return UNLIMITED


def _cgroups() -> list[Path]:
    """The folders of this process's memory cgroup, of either version."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, group = line.split(":", 2)
            root = Path("/sys/fs/cgroup")
            if names == "":
                found.append(root / group.lstrip("/"))
            elif "memory" in names.split(","):
                found.append(root / "memory" / group.lstrip("/"))
    return found


def is_out_of_memory(text: str) -> bool:
    """Whether an error, or the end of a log, says that memory ran out."""
    lowered = text.lower()
    return any(sign in lowered for sign in OOM_SIGNS)
