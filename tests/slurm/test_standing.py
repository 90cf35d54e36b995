"""What status says of jobs that a person or SLURM holds, of other users' jobs, and of those that
were asked to stop before their stage began; and two experiments with a run in common.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster as Machines
from tests.slurm.cluster import running
from tests.slurm.conftest import Site, wait_for
from tests.slurm.plans import pairs, trivial
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.ledger import Jobs
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.script import STOPPED_IN_SETUP
from tuning.launchers.slurm.submission import Outcome, Submission
from tuning.manage.status import stages_of
from tuning.plan import Plan, Stage, save_plan

NOBODY = 65534
RUN = ("submit", "--task", "math", "--dataset", "arith", "--base_model", "tiny", "--do_training")
SFT = (*RUN, "--sft_ratio", "1", "--train_sizes", "32")


@pytest.fixture
def user(make_site: Callable[..., Site]) -> Site:
    """A user with an empty home."""
    return make_site()


@pytest.fixture
def submit(user: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Submits stages that do nothing but be done, as an experiment of this name."""
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)

    def submit(name: str, *stages: Stage, **settings: str) -> Outcome:
        plan = Plan(experiment=name, stages=stages or trivial(tmp_path, 2).stages)
        return Submission(plan, Cluster(settings), Slurm()).run()

    return submit


def told(user: Site, experiment: str) -> list[tuple[str, str]]:
    """State and reason of every stage."""
    return [(row["state"], row["reason"]) for row in user.status(experiment).values()]


def test_what_slurm_holds_since_it_could_not_be_started_is_freed_by_submitting(
    user: Site, submit: Callable[..., Outcome]
) -> None:
    with user.cluster.failing_starts():
        submit("trial")
        held = ("waiting", "SLURM could not start it and holds it: submit again to free it")
        wait_for(lambda: told(user, "trial") == [held, held], 30, lambda: told(user, "trial"))
    outcome = submit("trial")
    assert (outcome.new, len(outcome.queued)) == ({}, 2)
    assert held not in told(user, "trial")
    user.wait_idle()
    assert told(user, "trial") == [("done", "")] * 2


def test_jobs_that_a_person_holds_or_that_are_another_users_and_stages_that_lost_their_files(
    user: Site, submit: Callable[..., Outcome]
) -> None:
    user.cluster.run("scontrol", "update", "PartitionName=low", "State=DOWN")
    try:
        first, _ = submit("trial").new.values()
        user.cluster.run("scontrol", "uhold", first.id)
        down = "the partition is down (PartitionDown): change partition and submit again"
        wait_for(lambda: told(user, "trial")[1] == ("waiting", down), 20, user.queue)
        goes_on = f"held by a person; it goes on after: scontrol release {first.id}"
        assert told(user, "trial")[0] == ("waiting", goes_on)
        assert submit("trial").new == {}
        assert told(user, "trial")[0] == ("waiting", goes_on)
    finally:
        user.cluster.run("scontrol", "update", "PartitionName=low", "State=UP")
    user.cluster.run("scontrol", "release", first.id)
    user.wait_idle()
    shutil.rmtree(user.home / "models" / first.stage)
    gone = ("pending", "was done, but its files are gone; submit again")
    assert told(user, "trial") == [gone, ("done", "")]
    assert list(submit("trial").new) == [first.stage]
    user.wait_idle()
    assert told(user, "trial") == [("done", "")] * 2


def test_the_jobs_of_another_user_are_seen_and_not_submitted_again(
    user: Site, submit: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Who shares a home has submitted the experiment; their job waits."""
    save_plan(
        user.home / "outputs/reports/trial",
        Plan(experiment="trial", stages=trivial(tmp_path, 2).stages),
    )
    submit("trial")
    user.wait_idle()
    for place in (user.home / "models").iterdir():
        shutil.rmtree(place)
    jobs = Jobs(user.home / "outputs/reports/trial")
    (array, report) = jobs.arrays()
    line = (
        "sbatch", "--parsable", "--chdir=/tmp", "--output=/dev/null", "--array=0-1", "--hold",
        f"--comment=tuning:{array.token}", "--wrap", "true",
    )  # fmt: skip
    number = user.cluster.run("runuser", "-u", "nobody", "--", "env", *_conf(user), *line)
    array.number, array.user = int(number), NOBODY
    jobs.write([array, report])
    held = f"held by a person; it goes on after: scontrol release {array.number}_"
    assert told(user, "trial") == [("waiting", f"{held}{i}, job of nobody") for i in range(2)]
    outcome = submit("trial")
    assert (outcome.new, len(outcome.queued)) == ({}, 2)

    array.released = False
    jobs.write([array, report])
    with pytest.raises(Exception, match="by nobody was interrupted; nobody must submit it again"):
        submit("trial")
    user.cluster.run("scancel", str(array.number))


def test_a_run_that_failed_as_a_job_of_another_experiment_failed_here_too(
    user: Site, submit: Callable[..., Outcome], tmp_path: Path
) -> None:
    """What stands on it says so, and submitting again runs both."""
    shared, child = pairs(tmp_path, 2).stages
    script = tmp_path / "stage.py"
    works = script.read_text()
    script.write_text("raise SystemExit('error: shapes differ')")
    user.cluster.run("scontrol", "update", "PartitionName=low", "State=DOWN")
    try:
        (task,) = submit("one", shared).new.values()
        assert list(submit("two", shared, child).new) == [child.name]
    finally:
        user.cluster.run("scontrol", "update", "PartitionName=low", "State=UP")
    failed = ("failed", "shapes differ, job of experiment one; submit again")
    below = ("blocked", f"{shared.name} failed")
    wait_for(lambda: told(user, "two") == [failed, below], 60, lambda: told(user, "two"))
    assert user.status("two")[shared.name]["job"] == task.id
    script.write_text(works)
    assert list(submit("two", shared, child).new) == [shared.name, child.name]
    user.wait_idle()
    assert told(user, "two") == [("done", "")] * 2


HOLDS = """
import sys, time
from pathlib import Path
from tuning import config as site
from tuning.plan import read_stage
from tuning.runs.rundir import Identity, claim
stage = read_stage(Path(sys.argv[sys.argv.index("--stage") + 1]))
identity = Identity(run_name=stage.name, kind="x", hash=stage.hash, hashed={}, settings={})
with claim(site.models_dir(), identity) as directory:
    time.sleep(120)
"""


def test_a_running_job_that_slurm_hides_since_it_is_another_users(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    cluster: Machines,
) -> None:  # fmt: skip
    """This process becomes another user on another machine, as far as it asks who and where."""
    with running(tmp_path_factory.mktemp("private"), private=True) as machines:
        (home := tmp_path / "home").mkdir()
        user = Site(machines, home)
        for name, value in user.environment.items():
            monkeypatch.setenv(name, value)
        plan = trivial(tmp_path, 1)
        Path(plan.stages[0].script).write_text(HOLDS)
        Submission(plan, Cluster({}), Slurm()).run()
        lock = home / "models" / plan.stages[0].name / "lock.json"
        wait_for(lock.exists, 60, user.queue)
        conf = " ".join(_conf(user))
        squeue = user.bin / "squeue"
        squeue.write_text(f'#!/bin/sh\nexec runuser -u nobody -- env {conf} /usr/bin/squeue "$@"\n')
        squeue.chmod(0o755)
        monkeypatch.setattr(os, "getuid", lambda: NOBODY)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        assert Slurm().queue([0]) == []
        (row,) = stages_of(plan, home)
        assert (row.state, row.reason) == ("running", "job of root")
        lock.unlink()
        (row,) = stages_of(plan, home)
        assert row.state == "pending" and "does not show whether the job of root" in row.reason


SAVES_SLOWLY = """
import signal, sys, time
from pathlib import Path
began = Path(__file__).with_name("began")
def save(number, frame):
    time.sleep(4)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
began.touch()
time.sleep(120)
"""


def test_what_is_submitted_right_after_it_was_cancelled_is_submitted_again(
    user: Site, submit: Callable[..., Outcome], tmp_path: Path
) -> None:
    """While its job still saves; by the same experiment or by one that shares the run."""
    (stage,) = trivial(tmp_path, 1).stages
    script = Path(stage.script)
    works = script.read_text()
    for name in ("trial", "other"):
        script.write_text(SAVES_SLOWLY)
        (task,) = submit(name, stage).new.values()
        wait_for((tmp_path / "began").exists, 60, user.queue)
        script.write_text(works)
        user.tuning("cancel", name)
        assert user.state(task.id) == "COMPLETING"
        (again,) = submit("trial", stage).new.values()
        assert user.state(task.id) == "CANCELLED" and again != task
        user.wait_idle()
        assert told(user, "trial") == [("done", "")]
        shutil.rmtree(user.home / "models" / stage.name)
        (tmp_path / "began").unlink()


def _conf(user: Site) -> list[str]:
    """What a SLURM command of another user needs to find the cluster."""
    folder = user.cluster.folder
    for place in (folder, *folder.parents):
        if place.stat().st_uid == os.getuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)
    (folder / "slurm.conf").chmod(0o644)
    return [f"SLURM_CONF={folder}/slurm.conf"]


def test_a_signal_during_the_set_up_lines_is_said(
    user: Site, submit: Callable[..., Outcome], tmp_path: Path
) -> None:
    settings = tmp_path / "cluster.yaml"
    began = tmp_path / "began"
    settings.write_text(
        f"defaults: {{signal_seconds: 20, time: '30', setup: ['touch {began}', sleep 2, sleep 60]}}"
    )
    user.variables["TUNING_CLUSTER"] = str(settings)
    os.environ["TUNING_CLUSTER"] = str(settings)  # put back by the fixture `submit`
    (task,) = submit("trial", trivial(tmp_path, 1).stages[0]).new.values()
    wait_for(began.exists, 30, user.queue)
    user.cluster.run("scancel", "--signal=USR1", "--batch", task.id)
    why = STOPPED_IN_SETUP
    wait_for(lambda: told(user, "trial") == [("failed", why)], 30, lambda: told(user, "trial"))


def test_a_second_experiment_waits_for_the_run_that_the_first_has_in_the_queue(user: Site) -> None:
    blocker = user.by_hand("--hold", "--wrap", "true")
    flags = (*SFT, "--dependency", f"afterok:{blocker}")
    user.tuning(*flags, "--experiment", "one")
    first = user.status("one")
    calls = user.sbatch_calls
    pft = ("--sft_ratio", "0.5", "--train_sizes", "64", "--do_sft_first", "--pft_method", "dpo")
    dry = user.tuning(*RUN, *pft, "--experiment", "two", "--dry_run")
    assert dry.count(" by experiment one]") == 2
    assert [line for line in dry.splitlines() if line.startswith("   task ")] == [
        f"   task 0: tiny_sft-arith-32_pt-arith-32  afterok tiny_sft-arith-32 "
        f"({first['tiny_sft-arith-32']['job']} of experiment one)",
        "   task 0: report  afterany of all others",
    ]
    said = user.tuning(*RUN, *pft, "--experiment", "two")
    assert said.count("(by experiment one)") == 2
    second = user.status("two")
    sft, fork = "tiny_sft-arith-32", "tiny_sft-arith-32_pt-arith-32"
    assert {n: r["job"] for n, r in second.items() if n != fork} == {
        n: r["job"] for n, r in first.items()
    }
    assert second[sft]["reason"] == "for tiny, job of experiment one"
    assert (second[fork]["state"], second[fork]["reason"]) == ("waiting", f"for {sft}")
    detail = user.cluster.run("scontrol", "show", "job", second[fork]["job"])
    assert f"Dependency=afterok:{first[sft]['job'].partition('_')[0]}" in detail
    assert user.sbatch_calls == calls + 2
    assert "submitted" not in user.tuning(*RUN, *pft, "--experiment", "two")

    small = ("--sft_ratio", "0.25", "--train_sizes", "96", "--do_sft_first", "--pft_method", "dpo")
    other = user.run(*_tuning(user), *RUN, *small, "--experiment", "one", code=2)
    assert "experiment 'one' is another plan, and 'tiny_sft-arith-32'" in other.stderr
    assert "tuning cancel one" in other.stderr and len(other.stderr.splitlines()) == 1
    assert user.status("one") == first
    user.tuning(*flags, "--train_sizes", "32", "48", "--experiment", "one")
    assert user.status("one").keys() == {*first, "tiny_sft-arith-48"}

    said = user.tuning("cancel", "one")
    assert said.endswith("submit these too if they are not done, they share its jobs: two\n")
    wait_for(lambda: user.status("two")[fork]["state"] == "blocked", 30, user.queue)
    rows = user.status("two")
    assert rows["tiny"]["state"] == "cancelled"
    assert rows["tiny"]["reason"].endswith("job of experiment one; submit again")
    assert (rows[sft]["state"], rows[sft]["reason"]) == ("blocked", "tiny cancelled")
    user.tuning(*RUN, *pft, "--experiment", "two", "--dependency", f"afterok:{blocker}")
    assert {row["state"] for row in user.status("two").values()} == {"waiting"}


def _tuning(user: Site) -> list[str]:
    return [user.environment["PYTHON"], "-m", "tuning.cli"]
