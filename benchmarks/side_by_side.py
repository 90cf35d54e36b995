"""Two small training runs: side by side with one thread each, or one after the other with all
threads.

    python benchmarks/side_by_side.py

What the local launcher does with everything but pre-training, beside the alternative. Pre-trains a
small model first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuning.config import CHECKOUT, PACKAGE

SIZES = (320, 321)


def environment(home: Path, threads: int) -> dict[str, str]:
    """A stage at test size."""
    return os.environ | {
        "TUNING_HOME": str(home),
        "TUNING_COLLECTIONS": str(CHECKOUT / "tests" / "collections.yaml"),
        "OMP_NUM_THREADS": str(threads),
    }


def start(home: Path, threads: int, script: str, *flags: str) -> subprocess.Popen[bytes]:
    """A stage in the background."""
    return subprocess.Popen(
        [sys.executable, str(PACKAGE / script), "--model", "tiny", *flags],
        env=environment(home, threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def sft(home: Path, threads: int, size: int) -> subprocess.Popen[bytes]:
    """One SFT run, with sampling and scoring."""
    data = ("--dataset", "arith", "--task", "math", "--train_size", str(size))
    phases = ("--do_training", "--do_inference", "--do_evaluation")
    return start(home, threads, "run_sft.py", *data, *phases)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a stage that must end well."""
    if process.wait() != 0:
        raise SystemExit(f"{process.args} ended with exit code {process.returncode}")


def main() -> None:
    """Print one table."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        finish(start(base, cores, "run_pretrain.py"))
        homes = [shutil.copytree(base, Path(folder) / name) for name in ("serial", "parallel")]

        began = time.monotonic()
        for size in SIZES:
            finish(sft(homes[0], cores, size))
        serial = time.monotonic() - began

        began = time.monotonic()
        for process in [sft(homes[1], max(1, cores // 2), size) for size in SIZES]:
            finish(process)
        parallel = time.monotonic() - began
    print(f"two SFT runs of {SIZES[0]} examples, sampled and scored, on {cores} cores")
    print(f"{'one after the other, all threads':40} {serial:6.1f} s")
    print(
        f"{'side by side, threads shared':40} {parallel:6.1f} s  {serial / parallel:.2f}x as fast"
    )


if __name__ == "__main__":
    main()
