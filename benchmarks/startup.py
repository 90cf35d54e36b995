"""Seconds of user time that the light commands take, beside an empty Python and an import of torch.

python benchmarks/startup.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

from tuning.config import PACKAGE

RUNS = 5
PIPELINE = str(PACKAGE / "run_sweetspot_pipeline.py")
EXPERIMENT = (
    "--model", "tiny", "--dataset", "arith", "--task", "math", "--total_data", "3000",
    "--sft_data", "2000", "--perplexity_thresholds", "2.0", "1.6", "1.4", "--do_sft", "--do_dpo",
    "--do_inference", "--do_evaluation",
)  # fmt: skip
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "run_sweetspot_pipeline.py --help": [PIPELINE, "--help"],
    "run_sweetspot_pipeline.py --dry_run, 3 forks": [PIPELINE, *EXPERIMENT, "--dry_run"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def user_seconds(arguments: list[str], home: str) -> float:
    """The best of several runs; the first warms the file cache."""
    found = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        environment = {"TUNING_HOME": home, "PATH": ""}
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        found.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return min(found)


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as home:
        seconds = {name: user_seconds(words, home) for name, words in COMMANDS.items()}
    torch = seconds["python -c 'import torch'"]
    print(f"{'command':46} {'user s':>7} {'of torch':>9}")
    for name, value in seconds.items():
        print(f"{name:46} {value:7.2f} {value / torch:8.0%}")


if __name__ == "__main__":
    main()
