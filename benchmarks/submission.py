"""Calls of SLURM's commands, and seconds, to submit 10, 100 and 1,000 runs: ours, one sbatch a run,
and submitit's map_array.

PYTHONPATH=. python benchmarks/submission.py

Every second run continues the one before it. submitit submits an array of first runs and one of
second runs that waits for the whole first array: it cannot tell each what it waits for. Starts a
throwaway SLURM of two nodes on this machine (Debian: slurm-wlm and munge, as root).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.cluster import Cluster, missing, running
from tests.slurm.plans import pairs
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.resources import Cluster as Asked
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan

SIZES = (10, 100, 1000)
COMMANDS = ("sbatch", "scontrol", "squeue", "scancel")


def ours(plan: Plan, _folder: Path) -> None:
    """An array a kind of stage, a dependency a task."""
    Submission(plan, Asked(), Slurm()).run()


def one_by_one(plan: Plan, folder: Path) -> None:
    """One sbatch a run, with the dependency on its command line."""
    jobs: dict[str, str] = {}
    for stage in plan.stages:
        above = [f"--dependency=afterok:{jobs[parent]}" for parent in stage.parents]
        done = subprocess.run(
            ["sbatch", "--parsable", *above, "--output", f"{folder}/%j.out", "--wrap", "true"],
            capture_output=True,
            text=True,
            check=True,
        )
        jobs[stage.name] = done.stdout.strip()


def by_submitit(plan: Plan, folder: Path) -> None:
    """An array of first runs, and an array of second runs behind the whole of it."""
    import submitit

    first = [stage.name for stage in plan.stages if not stage.parents]
    second = [stage.name for stage in plan.stages if stage.parents]
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster="slurm")
    executor.update_parameters(timeout_min=5, slurm_array_parallelism=1000, mem_gb=1)
    jobs = executor.map_array(len, first)
    number = jobs[0].job_id.partition("_")[0]
    executor.update_parameters(slurm_additional_parameters={"dependency": f"afterok:{number}"})
    executor.map_array(len, second)


def measured(
    submit: Callable[[Plan, Path], None], plan: Plan, cluster: Cluster, folder: Path
) -> tuple[dict[str, int], float]:
    """Calls by command, and seconds."""
    counted = folder / "calls"
    counted.write_text("")
    started = time.perf_counter()
    submit(plan, folder)
    seconds = time.perf_counter() - started
    called = counted.read_text().split()
    cluster.run("scancel", "-u", "root")
    while cluster.run("squeue", "-h"):
        time.sleep(0.5)
    return {name: called.count(name) for name in COMMANDS}, seconds


def count_calls(folder: Path) -> None:
    """Put scripts before SLURM's commands that write down each call."""
    found = folder / "bin"
    found.mkdir()
    for name in COMMANDS:
        script = found / name
        script.write_text(f'#!/bin/sh\necho {name} >> {folder}/calls\nexec /usr/bin/{name} "$@"\n')
        script.chmod(0o755)
    os.environ["PATH"] = f"{found}:{os.environ['PATH']}"


def main() -> None:
    """Print one table."""
    if reason := missing():
        sys.exit(f"no SLURM here: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cluster").mkdir()
        os.environ["TUNING_HOME"] = str(folder / "home")
        with running(folder / "cluster", largest_array=2001) as cluster:
            os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
            cluster.run("scontrol", "update", "PartitionName=low", "State=DOWN")
            count_calls(folder)
            _table(cluster, folder)


def _table(cluster: Cluster, folder: Path) -> None:
    heads = f"{'sbatch':>7} {'scontrol':>9} {'squeue':>7} {'seconds':>8} {'of one by one':>14}"
    print(f"{'':12} {'runs':>6} {heads}")
    for size in SIZES:
        plan = pairs(folder, size)
        found = {
            "one by one": measured(one_by_one, plan, cluster, folder),
            "submitit": measured(by_submitit, plan, cluster, folder),
            "tuning": measured(ours, plan, cluster, folder),
        }
        for name, (calls, seconds) in found.items():
            ratio = seconds / found["one by one"][1]
            print(
                f"{name:12} {size:6} {calls['sbatch']:7} {calls['scontrol']:9} {calls['squeue']:7} "
                f"{seconds:8.2f} {ratio:13.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
