"""What SLURM itself has forgotten, its accounting database still knows."""

from __future__ import annotations

import os
import sys
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
def required() -> None:
    """Whether there can be accounting on this machine."""
    reason = missing() or accounting.missing()
    if reason is not None:
        if os.environ.get("TUNING_REQUIRE_SLURM"):
            pytest.fail(f"no accounting here: {reason}")
        pytest.skip(reason)


@pytest.fixture
def accounted(required: None, trained_home: Path, tmp_path: Path) -> Iterator[Site]:
    """A user on a cluster that forgets ended jobs after seconds and keeps accounts."""
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


@pytest.fixture
def limited(required: None, tmp_path: Path) -> Iterator[Site]:
    """A user with an empty home on a cluster whose QOS `fast` allows five minutes."""
    folder, home = tmp_path / "cluster", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    with running(folder, accounted=True, limited=True) as cluster:
        for words in (
            "add account project", "add user root account=project", "add qos fast",
            "modify qos fast set MaxWall=5", "modify user root set qos=normal,fast",
        ):  # fmt: skip
            cluster.run("sacctmgr", "-i", *words.split())
        yield Site(cluster, home)


def test_limits_of_accounts_and_qos_are_refused_or_said(limited: Site) -> None:
    submit = (sys.executable, "-m", "tuning.cli", "submit", *RUN, "--experiment", "trial")

    def refused(*flags: str) -> str:
        return limited.run(*submit, *flags, code=2).stderr

    wait_for(lambda: "fast" in limited.cluster.run("sacctmgr", "-n", "show", "qos"), 20)
    assert "qos is nope; change qos (--qos, or in cluster.yaml)" in refused("--qos", "nope")
    assert "account is nope; change account (--account, or" in refused("--account", "nope")
    assert not limited.jobs()
    said = limited.run(*submit, "--qos", "fast", "--time", "30").stderr
    why = (
        "it asks for more time than is allowed (QOSMaxWallDurationPerJobLimit): change time or qos"
    )
    assert f"cannot start: {why}" in said
    assert limited.status("trial")["tiny"]["reason"] == f"{why} and submit again"
