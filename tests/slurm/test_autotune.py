"""AUTOTUNE=y through run.sh on a real SLURM: tuned inside the allocation, before training, once for
jobs of one key, and shown by status.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.slurm.conftest import GONE, Site
from tests.slurm.test_front_door import GRID
from tuning.runs import atomic
from tuning.runs.rundir import RunDirectory

CHOICES = GRID | {"SFT_RATIO": "1", "TRAIN_SIZES": "32", "AUTOTUNE": "y"}
FLAGS = ("--seed", 1, 2, "--profile_steps", 3, "--max_iterations", 1, "--time_budget", 300)


def seen_by_status(site: Site, seconds: float = 400) -> list[str]:
    """What status says of the progress of running stages, until nothing is left to run."""
    found: list[str] = []
    until = time.monotonic() + seconds
    while not set(site.jobs().values()) <= set(GONE):
        assert time.monotonic() < until
        found += [row["progress"] for row in site.status().values() if row["state"] == "running"]
        time.sleep(0.5)
    return found


def choice(run: Path) -> dict:
    return atomic.read_object(run / "autotune.json") or {}


def test_autotune_tunes_in_the_allocation_once_for_jobs_of_one_key(user: Site) -> None:
    user.variables |= CHOICES
    user.run("bash", user.checkout / "slurm/run.sh", *FLAGS)
    progress = seen_by_status(user)
    assert any(words.startswith("tune 1/1") for words in progress), dict.fromkeys(progress)
    assert {row["state"] for row in user.status().values()} == {"done"}

    runs = [p.parent for p in user.home.glob("models/tiny_sft-arith-32*/autotune.json")]
    assert len(runs) == 2
    assert sorted(choice(run)["source"] for run in runs) == ["cache", "search"]
    assert len({choice(run)["key"] for run in runs}) == 1
    for run in runs:
        log = next(user.home.glob(f"outputs/reports/*/logs/{run.name}.txt")).read_text()
        assert log.index("tuned (") < log.index(f"{run.name}: trained")
        assert RunDirectory(run).config["provenance"]["slurm_job"]
    (report,) = user.home.glob("outputs/reports/*/report.html")
    assert "How training was tuned" in report.read_text()
