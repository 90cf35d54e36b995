"""Seconds of user time that the light commands take, beside an empty Python and an import of torch,
and the imports of a training with and without what it does not use.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

from tuning import config as site
from tuning import run_sweetspot_pipeline
from tuning.config import PACKAGE
from tuning.runs import atomic

RUNS = 5
PIPELINE = str(PACKAGE / "run_sweetspot_pipeline.py")
EXPERIMENT = (
    "--model",
    "tiny",
    "--dataset",
    "arith",
    "--task",
    "math",
    "--total_data",
    "3000",
    "--sft_data",
    "2000",
    "--perplexity_thresholds",
    "2.0",
    "1.6",
    "1.4",
    "--do_sft",
    "--do_dpo",
    "--do_inference",
    "--do_evaluation",
)
TRAINING = "import tuning.training.sft_training, trl.trainer.sft_trainer"
LEAN = "from tuning.runs import lean_imports; lean_imports.install(); "
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "run_sweetspot_pipeline.py --help": [PIPELINE, "--help"],
    "tuning submit --help": ["-m", "tuning.cli", "submit", "--help"],
    "--dry_run of 3 forks, here": [PIPELINE, *EXPERIMENT, "--dry_run", "--launcher", "local"],
    "--dry_run of 3 forks, SLURM": [PIPELINE, *EXPERIMENT, "--dry_run", "--launcher", "slurm"],
    "tuning status of 3 forks": ["-m", "tuning.cli", "status"],
    "python -c 'import torch'": ["-c", "import torch"],
    "imports of SFT, as the libraries have them": ["-c", TRAINING],
    "imports of SFT, as a stage has them": ["-c", LEAN + TRAINING],
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


def _make_plan(home: str) -> None:
    """An experiment of which nothing has run, for `tuning status` to look at."""
    os.environ["TUNING_HOME"] = home
    args = run_sweetspot_pipeline.parser().parse_args([*EXPERIMENT, "--dry_run"])
    plan = run_sweetspot_pipeline.plan_of(args)
    atomic.write_json(site.reports_dir() / plan.experiment / "plan.json", plan.to_json())


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as home:
        _make_plan(home)
        seconds = {name: user_seconds(words, home) for name, words in COMMANDS.items()}
    torch = seconds["python -c 'import torch'"]
    print(f"{'command':46} {'user s':>7} {'of torch':>9}")
    for name, value in seconds.items():
        print(f"{name:46} {value:7.2f} {value / torch:8.0%}")


if __name__ == "__main__":
    main()
