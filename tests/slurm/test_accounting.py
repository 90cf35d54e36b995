"""What SLURM itself has forgotten, its accounting database still knows; what was used; limits of
jobs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import copy_home
from tests.slurm import accounting
from tests.slurm.cluster import Cluster as Machines
from tests.slurm.cluster import missing, running
from tests.slurm.conftest import Site, wait_for
from tests.slurm.plans import pairs
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.ledger import Jobs
from tuning.launchers.slurm.resources import Cluster, for_kinds
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Stage

RUN = (
    "--task", "math", "--dataset", "arith", "--sft_ratio", "1", "--base_model", "tiny",
    "--train_sizes", "32", "--do_training",
)  # fmt: skip


@pytest.fixture(scope="module")
def required() -> None:
    """Whether there can be accounting on this machine."""
    reason = missing() or accounting.missing()
    if reason is not None:
        if os.environ.get("TUNING_REQUIRE_SLURM"):
            pytest.fail(f"no accounting here: {reason}")
        pytest.skip(reason)


@pytest.fixture(scope="module")
def machines(required: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A cluster that forgets ended jobs after seconds and keeps accounts."""
    folder = tmp_path_factory.mktemp("accounted")
    with running(folder, accounted=True, remembers=2) as cluster:
        yield cluster


@pytest.fixture
def accounted(machines: Machines, trained_home: Path, tmp_path: Path) -> Site:
    """A user on that cluster."""
    return Site(machines, copy_home(trained_home, tmp_path / "home"))


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


def test_a_limit_of_jobs_means_portions_and_the_report_says_what_was_used(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is not named: SLURM refuses what is too much, and the last jobs submit the rest.

    At the end of the first portion there is no room for more: the report waits for some.
    """
    (tmp_path / "home").mkdir()
    user = Site(machines, tmp_path / "home")
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)
    plan = pairs(tmp_path, 4)
    plan = replace(plan, stages=tuple(map(_reference, plan.stages)))
    script = tmp_path / "stage.py"
    script.write_text("import time; time.sleep(2)\n" + script.read_text())
    cluster = Cluster(kinds=for_kinds(["sft:gres=gpu:2", "pft:mem=500M"]))
    _limit(machines, 4)
    try:
        outcome = Submission(plan, cluster, Slurm()).run()
        assert (len(outcome.new), len(outcome.left), outcome.goes_on) == (2, 2, True)
        blocker = user.by_hand("--hold", "--wrap", "true")
        _limit(machines, 2)
        folder = user.home / "outputs" / "reports" / plan.experiment
        (report,) = [
            task.number for task in Jobs(folder).latest().values() if task.stage == "report"
        ]
        wait_for(lambda: _restarts(machines, report) > 0, 120, user.queue)
        _limit(machines, 4)
        machines.run("scancel", blocker)
        wait_for(lambda: not (folder / "slurm/rest.json").exists(), 120, user.queue)
        user.wait_idle(60)
    finally:
        _limit(machines, -1)
    assert {row["state"] for row in user.status(plan.experiment).values()} == {"done"}
    assert len({path.parent for path in user.home.glob("snapshots/*/tuning")}) == 1
    _used(user, folder)


def _limit(machines: Machines, jobs: int) -> None:
    """How many jobs SLURM takes of this user at once; -1: any number."""
    machines.run("sacctmgr", "-i", "modify", "user", "root", "set", f"MaxSubmitJobs={jobs}")


def _restarts(machines: Machines, job: int) -> int:
    """How often a job was requeued."""
    found = re.search(r"Restarts=(\d+)", machines.run("scontrol", "show", "job", str(job)))
    return int(found[1]) if found else 0


def _reference(stage: Stage) -> Stage:
    """A stage that the report has a row for although it knows nothing of its parent."""
    return replace(stage, role={"sft": "reference_sft", "pt": "reference_pt"}[stage.role])


def _used(user: Site, folder: Path) -> None:
    user.tuning("report", folder.name)
    found = json.loads((folder / "usage.json").read_text())["kinds"]
    assert (found["sft"]["starts"], found["pft"]["starts"]) == (2, 2)
    for kind, gpus in (("sft", 2), ("pft", 0)):
        assert 2 * 2 <= found[kind]["seconds"] == found[kind]["core_seconds"]
        assert found[kind]["gpu_seconds"] == gpus * found[kind]["seconds"]
        assert 0 < found[kind]["cpu_seconds"] <= found[kind]["core_seconds"]
    assert found["pft"]["memory_asked"] == 500 << 20
    assert 1 << 20 < found["pft"]["memory"] < 500 << 20
    assert "What it used on the cluster" in (folder / "report.html").read_text()


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
