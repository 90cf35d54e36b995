"""Every CUDA path of the project, checked and measured on one GPU; one table.

    python benchmarks/gpu_smoke.py                          # one GPU, 8 minutes at most
    python benchmarks/gpu_smoke.py --output found.json --budget 300
    python benchmarks/gpu_smoke.py --steps attention engine --device cpu

Steps (gpu_checks/steps.py) are processes of their own with a time limit, and so is what they start:
a crash, a hang, memory that runs out or a package that is missing is a row of the table. What comes
after the budget is spent is skipped, and says so. Rows are told on standard error as they come, and
after each one the file of --output is written anew. Without a GPU, or with --device cpu, everything
is so small that it shows whether this program runs, and nothing about speed. docs/gpu.md says what
rows mean.

Exit code 0 if every row is ok or skipped, else 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The machine with the GPU may have a checkout of this project only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.gpu_checks.command import main

    sys.exit(main(sys.argv[1:]))
