"""Every CUDA path of the project, checked and measured on one GPU; one table.

    python benchmarks/gpu_smoke.py                          # one GPU, 8 minutes at most
    python benchmarks/gpu_smoke.py --output found.json --budget 300
    python benchmarks/gpu_smoke.py --steps attention engine # those only
    python benchmarks/gpu_smoke.py --device cpu             # without a GPU, at a small size

Steps (gpu_checks/steps.py) are processes of their own with a time limit, and so is what they start:
a crash, a hang, memory that runs out or a package that is missing is a row of the table. A step
whose limit is more than what is left of the budget is skipped, and says so. Rows are told on
standard error as they come, and after each one the file of --output is written anew. With --device
cpu everything is so small that it shows whether this program runs, and nothing about speed.
docs/gpu.md says what rows mean.

Exit code 0 if every row is ok or skipped, or if there is no GPU; else 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The machine with the GPU may have a checkout of this project only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.gpu_checks.command import main

    sys.exit(main(sys.argv[1:]))
