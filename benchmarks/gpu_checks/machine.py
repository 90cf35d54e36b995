"""What the machine is, and the versions of what runs on it."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

from benchmarks.gpu_checks.rows import OK
from benchmarks.gpu_checks.site import Context

PACKAGES = (
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "vllm",
    "liger-kernel",
    "triton",
)


def run(context: Context) -> None:
    """Three rows: the device, torch and what it was built with, the packages."""
    import torch

    device = _gpu() if context.device == "cuda" else _processor()
    context.say("device", OK, device.pop("says"), **device)
    built = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "python": platform.python_version(),
    }
    context.say("torch", OK, ", ".join(f"{n} {v or 'none'}" for n, v in built.items()), **built)
    versions = {name: _version(name) for name in PACKAGES}
    context.say(
        "packages", OK, ", ".join(f"{n} {v or 'none'}" for n, v in versions.items()), **versions
    )


def _gpu() -> dict[str, Any]:
    import torch

    from tuning.engine import flops

    found = torch.cuda.get_device_properties(0)
    peak = flops.peak(torch.device("cuda", 0), torch.bfloat16)
    gib = found.total_memory / 2**30
    known = f"{peak / 1e12:.1f} TFLOP/s in bf16" if peak else "peak FLOP/s not known: no MFU"
    number = torch.cuda.device_count()
    says = (
        f"{number} x {found.name}, {gib:.0f} GiB, compute capability {found.major}.{found.minor}, "
        f"driver {_driver()}, {known}"
    )
    return {
        "says": says,
        "name": found.name,
        "devices": number,
        "memory_gib": round(gib, 1),
        "capability": f"{found.major}.{found.minor}",
        "driver": _driver(),
        "peak_bf16": peak,
    }


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def _processor() -> dict[str, Any]:
    import torch

    says = f"no GPU in use: {platform.machine()}, {torch.get_num_threads()} threads of torch"
    return {"says": says, "name": platform.machine(), "threads": torch.get_num_threads()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
