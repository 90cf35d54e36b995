"""What the cluster could never run is refused before anything is submitted; what SLURM will not
change is taken back; and what cannot start is said.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.slurm.conftest import Site, wait_for

RUN = (
    "submit", "--task", "math", "--dataset", "arith", "--sft_ratio", "0.5", "--base_model", "tiny",
    "--pft_method", "dpo", "--train_sizes", "32", "--do_training", "--do_sft_first",
    "--experiment", "trial",
)  # fmt: skip


@pytest.fixture
def user(make_site: Callable[..., Site]) -> Site:
    """A user with an empty home."""
    return make_site()


def refused(user: Site, *flags: str) -> str:
    """The one line with which a submission is refused; nothing is left of it."""
    before = user.jobs()
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", *RUN, *flags],
        env=user.environment, capture_output=True, text=True, check=False, cwd=user.checkout,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert {j for j, s in user.jobs().items() if s == "PENDING"} <= before.keys()
    return line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--gres", "gpu:9"), "kind pretrain, sft, pft: gres is gpu:9, and no node of partition "
         "low has more than gpu:2; change gres (--gres, or in cluster.yaml)"),
        (("--gres", "gpu:a100:1"), "gres is gpu:a100:1"),
        (("--mem", "100G"), "kind pretrain, sft, pft: mem is 100G, and no node of "
         "partition low has more than 4000M; change mem"),
        (("--cpus", "64", "--partition", "high"), "kind pretrain, sft, pft: cpus is 64, and no "
         "node of partition high has more than 2; change cpus"),
        (("--nodes", "5"), "kind pretrain: nodes is 5, and the partition has 2; change nodes"),
        (("--constraint", "a100"), "constraint is a100; change constraint"),
        (("--partition", "nowhere"), "partition is nowhere; change partition"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_no_node_could_run_is_refused_and_leaves_nothing(user: Site, flags, told) -> None:
    line = refused(user, *flags)
    assert told in line
    assert line.startswith("error: SLURM cannot run stages of kind ")
    assert "SLURM says: " in line
    assert user.sbatch_calls == 0
    assert not list((user.home / "outputs").rglob("*.json"))


def test_where_the_nodes_are_only_down_it_is_submitted_and_said(user: Site) -> None:
    user.cluster.run("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        assert "gres is gpu:9" in refused(user, "--gres", "gpu:9")
        user.tuning(*RUN)
        row = wait_for(
            lambda: (r := user.status("trial")["tiny"])["reason"] == "nodes not available" and r
        )
        assert row["state"] == "waiting"
        user.tuning("cancel", "trial")
    finally:
        user.cluster.run("scontrol", "update", "NodeName=n1,n2", "State=RESUME")


@pytest.fixture
def limited(user: Site) -> Iterator[Site]:
    """A cluster whose default partition allows ten minutes."""
    user.cluster.run("scontrol", "update", "PartitionName=low", "MaxTime=10")
    yield user
    user.cluster.run("scontrol", "update", "PartitionName=low", "MaxTime=UNLIMITED")


def test_what_cannot_start_is_said_and_replaced_by_what_can_run(limited: Site) -> None:
    user = limited
    done = user.run(sys.executable, "-m", "tuning.cli", *RUN, "--time", "30")
    jobs = user.jobs()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert (
        "cannot start: the partition allows less time (PartitionTimeLimit): change time or " in line
    )
    row = user.status("trial")["tiny"]
    assert row["state"] == "waiting"
    assert "change time or partition and submit again" in row["reason"]

    same = user.tuning(*RUN, "--time", "30")
    assert "submitted" not in same and user.jobs() == jobs

    assert "mem is 100G" in refused(user, "--mem", "100G")
    assert user.jobs() == jobs

    blocker = user.by_hand("--hold", "--wrap", "true")
    said = user.tuning(*RUN, "--time", "5", "--dependency", f"afterok:{blocker}")
    assert said.count("which asked for other resources)") == 3
    assert {user.jobs().get(job, "CANCELLED") for job in jobs} == {"CANCELLED"}
    rows = user.status("trial")
    assert {row["state"] for row in rows.values()} == {"waiting"}
    assert rows["tiny_sft-arith-16"]["reason"] == "for tiny"
    limits = user.cluster.run("squeue", "-h", "-u", "root", "-o", "%j %l").splitlines()
    assert {line.split()[1] for line in limits if ".sft" in line or "sft-" in line} == {"5:00"}


def test_what_slurm_will_not_change_is_taken_back(user: Site) -> None:
    """Where the check beforehand lets something pass, SLURM may still refuse it midway."""
    bend = '{ [ "$1" = --parsable ] && set -- --cpus-per-task=64 "$@"; }'
    user.wrap_sbatch(bend)
    line = refused(user)
    assert "SLURM refuses the jobs of 'trial': scontrol update JobId=" in line
    assert "They were cancelled" in line
    user.wrap_sbatch()
    blocker = user.by_hand("--hold", "--wrap", "true")
    user.tuning(*RUN, "--dependency", f"afterok:{blocker}")
    assert {row["state"] for row in user.status("trial").values()} == {"waiting"}


def test_what_waited_is_queued_again_where_slurm_refuses_what_replaces_it(user: Site) -> None:
    blocker = user.by_hand("--hold", "--wrap", "true")
    user.tuning(*RUN, "--time", "30", "--dependency", f"afterok:{blocker}")
    reasons = {row["stage"]: row["reason"] for row in user.status("trial").values()}
    user.wrap_sbatch('grep -q -- "--time=5" "$2" && set -- --cpus-per-task=64 "$@"')
    words = (*RUN, "--time", "5", "--dependency", f"afterok:{blocker}")
    done = user.run(sys.executable, "-m", "tuning.cli", *words, code=2)
    assert "SLURM refuses the jobs of 'trial': scontrol update JobId=" in done.stderr
    assert done.stderr.endswith("What waited is queued again, as it was.\n")
    user.wrap_sbatch()
    again = user.tuning(*RUN, "--time", "30", "--dependency", f"afterok:{blocker}")
    assert "submitted" not in again
    rows = user.status("trial").values()
    assert {row["state"] for row in rows} == {"waiting"}
    assert {row["stage"]: row["reason"] for row in rows} == reasons
