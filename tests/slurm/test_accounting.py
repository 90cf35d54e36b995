"""What SLURM itself has forgotten, its accounting database still knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import copy_home
from tests.slurm import accounting
from tests.slurm.cluster import missing, running
from tests.slurm.conftest import Site, wait_for

RUN = (
    "--task", "math", "--dataset", "arith", "--sft_ratio", "1", "--base_model", "tiny",
    "--train_sizes", "32", "--do_training",
)  # fmt: skip


@pytest.fixture
def accounted(trained_home: Path, tmp_path: Path) -> Iterator[Site]:
    """A user on a cluster that forgets ended jobs after seconds and keeps accounts."""
    reason = missing() or accounting.missing()
    if reason is not None:
        if os.environ.get("TUNING_REQUIRE_SLURM"):
            pytest.fail(f"no accounting here: {reason}")
        pytest.skip(reason)
    folder = tmp_path / "cluster"
    folder.mkdir()
    with running(folder, accounted=True, remembers=2) as cluster:
        yield Site(cluster, copy_home(trained_home, tmp_path / "home"))


def test_how_a_forgotten_job_ended(accounted: Site) -> None:
    blocker = accounted.by_hand("--hold", "--wrap", "true")
    accounted.tuning("submit", *RUN, "--dependency", f"afterok:{blocker}")
    (row,) = [row for name, row in accounted.status().items() if name != "tiny"]
    assert row["state"] == "waiting"
    accounted.cluster.run("scancel", row["job"])
    number = row["job"].partition("_")[0]
    wait_for(
        lambda: all(job.partition("_")[0] != number for job in accounted.jobs()), 120,
        accounted.queue,
    )  # fmt: skip
    (row,) = [row for name, row in accounted.status().items() if name != "tiny"]
    assert (row["state"], row["reason"]) == ("cancelled", "cancelled")
    accounted.cluster.run("scancel", blocker)
    accounted.tuning("submit", *RUN)
    accounted.wait_idle()
    assert {row["state"] for row in accounted.status().values()} == {"done"}
