"""How stages are said to stand: every state and reason, from directories, records, SLURM's memory
and the last words of a job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.small_site import use
from tuning import cli
from tuning import config as site
from tuning.launchers.slurm.client import Job
from tuning.launchers.slurm.ledger import Array, Jobs
from tuning.launchers.slurm.script import ENDED_IN_SETUP, STOPPED_IN_SETUP
from tuning.manage.commands import logs
from tuning.manage.status import StageStatus, stages_of, states, table
from tuning.plan import Plan, Stage
from tuning.runs import atomic
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.identity import FORMAT
from tuning.runs.lock import Lock
from tuning.runs.rundir import Identity, claim

pytestmark = pytest.mark.unit

NOBODY = 65534


def stage(name: str, *parents: str, **values) -> Stage:
    """A stage that trains."""
    values = {"role": "sft", "script": "x.py", "phases": ("train",), **values}
    return Stage(name=name, hash=name[0] * 64, parents=parents, **values)


PLAN = Plan(
    experiment="trial",
    stages=(
        stage("a"), stage("b", "a"), stage("c", "b"),
        stage("row", "a", script="", phases=(), trains=False),
    ),
)  # fmt: skip


class Cluster:
    """What SLURM remembers: tasks in its queue, and ended ones in its accounting."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.accounted: dict[str, str] = {}
        self.fails = False

    def queue(self, users: Iterable[int] = ()) -> list[Job]:
        if self.fails:
            raise StageFailed("squeue does not answer: it is away.")
        return self.jobs

    def ended(self, jobs: list[str]) -> dict[str, str]:
        return {job: self.accounted[job] for job in jobs if job in self.accounted}


class Experiment:
    """The folders of an experiment, and what is said of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "outputs" / "reports" / "trial"
        self.slurm = Cluster()

    def submit(self, *, released: bool = True) -> None:
        """Tasks 7_0, 7_1 and 7_2."""
        names = [s.name for s in PLAN.stages if s.has_work]
        keys = [s.key for s in PLAN.stages if s.has_work]
        Jobs(self.folder).write([Array(token="trial.1.sft", kind="sft", stages=names, keys=keys,
                                       number=7, released=released)])  # fmt: skip

    def task(self, index: int, state: str, reason: str = "None", **values) -> None:
        """How SLURM sees a task."""
        self.slurm.jobs.append(
            Job(id=f"7_{index}", state=state, reason=reason, token="trial.1.sft", **values)
        )

    def run(self, name: str, state: str, **phases: float) -> Path:
        """A run directory in which these phases are done, each in so many seconds."""
        identity = Identity(run_name=name, kind="x", hash=name[0] * 64, hashed={}, settings={})
        done = {phase: {"state": "done", "seconds": s} for phase, s in phases.items()}
        with claim(self.home / "models", identity) as directory:
            directory.write_status(state, "", done)
        return directory.path

    def record(self, name: str, state: str, reason: str = "", signal: str = "") -> None:
        """What its supervisor wrote."""
        atomic.write_json(
            self.folder / "stages" / f"{name}.json",
            {"state": state, "code": 1, "reason": reason, "signal": signal},
        )

    def output(self, index: int, text: str) -> None:
        """What the job of a task said."""
        atomic.write_text(self.folder / "slurm" / f"trial.1.sft-{index}.out", text)

    def rows(self) -> dict[str, StageStatus]:
        """Every row by the name of its stage."""
        return {row.stage: row for row in stages_of(PLAN, self.home, self.slurm)}

    def told(self) -> dict[str, tuple[str, str]]:
        """State and reason of every stage."""
        return states(list(self.rows().values()))


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Experiment:
    return Experiment(use(monkeypatch, tmp_path))


@pytest.fixture
def submitted(experiment: Experiment) -> Experiment:
    experiment.submit()
    return experiment


def test_before_anything_began_every_stage_is_pending_and_slurm_is_not_asked(experiment):
    experiment.slurm.fails = True
    assert experiment.told() == dict.fromkeys("abc", ("pending", "not started"))
    assert list(experiment.home.iterdir()) == []


def test_what_is_done_says_how_long_it_took_and_how_well(experiment):
    folder = experiment.run("a", "done", train=3661.4)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 0.51}\n{"')
    row = experiment.rows()["a"]
    assert (row.state, row.elapsed, row.metric, row.job) == ("done", "1:01:01", "loss 0.51", "")


def test_perplexity_is_told_before_loss(experiment):
    folder = experiment.run("a", "done", train=1)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "perplexity": 7.389}\n')
    assert experiment.rows()["a"].metric == "perplexity 7.389"


@pytest.mark.parametrize("k", ["1", "2"])
def test_an_evaluated_stage_says_what_it_scored(experiment, k):
    """Where pass@1 was not asked for, nothing is said of it."""
    plan = Plan(experiment="trial", stages=(
        stage("a", phases=("train", "evaluate"), task="math", evaluation_hash="e" * 64),
    ))  # fmt: skip
    experiment.run("a", "done", train=1)
    identity = Identity(run_name="a", kind="x", hash="e" * 64, hashed={}, settings={})
    with claim(experiment.home / "outputs" / "math", identity) as directory:
        directory.write_status("done", "", {"evaluate": {"state": "done", "seconds": 60}})
    interval = {"estimate": 0.25, "low": 0.0, "high": 1.0}
    scores = {"prompts": 1, "samples": 4, "correct": [1], "pass_at_k": {k: interval}}
    atomic.write_json(directory.path / "scores.json", scores)
    (row,) = stages_of(plan, experiment.home, experiment.slurm)
    assert (row.state, row.elapsed) == ("done", "0:01:01")
    assert row.metric == ("pass@1 0.250" if k == "1" else row.metric)


def test_a_run_directory_has_the_last_word(submitted):
    submitted.run("a", "done", train=1)
    submitted.record("a", "failed", "out of memory")
    submitted.task(0, "FAILED")
    assert submitted.told()["a"] == ("done", "")


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("Resources", "resources"),
        ("Priority", "priority"),
        ("None", ""),
        ("BeginTime", "requeued; SLURM restarts it soon"),
        ("JobArrayTaskLimit", "limit of tasks that run at the same time"),
        ("QOSMaxJobsPerUserLimit", "limit of the QOS"),
        ("JobHeldUser", "held by a person; it goes on after: scontrol release 7_0"),
        ("JobHeldAdmin", "held by an administrator, who can release it: scontrol release 7_0"),
        (
            "launch failed requeued held",
            "SLURM could not start it and holds it: submit again to free it",
        ),
        (
            "PartitionTimeLimit",
            "the partition allows less time (PartitionTimeLimit): change time or partition and "
            "submit again",
        ),
        (
            "QOSMaxWallDurationPerJobLimit",
            "it asks for more time than is allowed (QOSMaxWallDurationPerJobLimit): change time or "
            "qos and submit again",
        ),
        (
            "AssocMaxGRESPerJob",
            "the GPUs are not allowed (AssocMaxGRESPerJob): change gres or qos and submit again",
        ),
        ("QOSMaxGRESPerUser", "limit of the QOS"),
        ("QOSMaxMemoryPerUser", "limit of the QOS"),
        ("AssocGrpCpuLimit", "limit of the account"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
            "nodes not available",
        ),
    ],
)
def test_a_queued_stage_says_what_it_waits_for(submitted, reason, told):
    submitted.task(0, "PENDING", reason)
    row = submitted.rows()["a"]
    assert (row.state, row.reason, row.job) == ("waiting", told, "7_0")


def test_a_stage_that_is_held_since_its_submission_was_interrupted_says_so(experiment):
    experiment.submit(released=False)
    experiment.task(0, "PENDING", "JobHeldUser")
    told = ("waiting", "held; its submission was interrupted: submit again")
    assert experiment.told()["a"] == told


def test_the_job_of_another_user_says_whose_it_is(submitted):
    submitted.task(0, "RUNNING", node="n1", user="nobody")
    submitted.task(1, "PENDING", "Resources", user="nobody")
    assert submitted.told()["a"] == ("running", "on n1, job of nobody")
    assert submitted.told()["b"] == ("waiting", "resources, job of nobody")


def test_jobs_of_another_user_that_slurm_hides_are_not_called_cancelled(submitted, monkeypatch):
    """A lock that is held is proof that one runs."""
    (array,) = Jobs(submitted.folder).arrays()
    array.user = NOBODY
    Jobs(submitted.folder).write([array])
    hidden = "SLURM does not show whether the job of nobody waits; submit again if not"
    assert submitted.told() == dict.fromkeys("abc", ("pending", hidden))
    submitted.record("a", "running")
    assert submitted.told()["a"] == ("pending", hidden)
    holder = {"host": "n1", "pid": 1, "started": "1", "job": "7_0", "heartbeat": time.time()}
    run = submitted.run("a", "running")
    (run / "lock.json").write_text(json.dumps(holder))
    owner = lambda lock: NOBODY if lock.path.parent == run else None  # noqa: E731
    monkeypatch.setattr(Lock, "owner", owner)
    assert submitted.told()["a"] == ("running", "job of nobody")
    submitted.slurm.accounted = {"7_1": "CANCELLED"}
    assert submitted.told()["b"] == ("cancelled", "cancelled")


@pytest.mark.parametrize("job", ["COMPLETED", ""])
def test_a_stage_that_was_done_and_whose_directory_is_gone_says_so(submitted, job):
    submitted.run("b", "done", train=1)
    submitted.record("a", "done")
    submitted.output(0, "a: done\n")
    if job:
        submitted.task(0, job)
    assert submitted.told()["a"] == ("pending", "was done, but its files are gone; submit again")
    assert submitted.told()["b"] == ("done", "")


def test_a_job_that_was_stopped_during_its_set_up_lines_says_so(submitted):
    submitted.output(0, f"Loading cuda\nerror: {STOPPED_IN_SETUP}\n")
    submitted.task(0, "FAILED", "NonZeroExitCode")
    assert submitted.told()["a"] == ("failed", STOPPED_IN_SETUP)
    assert "raise time" in STOPPED_IN_SETUP


def test_what_slurm_says_of_a_job_is_told_before_what_its_set_up_lines_do(submitted):
    submitted.output(1, f"error: {ENDED_IN_SETUP}\n")
    submitted.run("a", "done", train=1)
    submitted.task(1, "FAILED", "NonZeroExitCode")
    assert submitted.told()["b"] == ("stopped", ENDED_IN_SETUP)
    submitted.output(1, f"error: {STOPPED_IN_SETUP}\nsrun: DUE TO NODE FAILURE\n")
    assert submitted.told()["b"] == ("failed", "node failure")


def test_a_stage_that_is_left_says_who_submits_it(submitted):
    rest = submitted.folder / "slurm" / "rest.json"
    atomic.write_json(rest, {"format": FORMAT, "stages": ["b", "c"]})
    submitted.task(0, "RUNNING")
    assert submitted.told()["b"] == submitted.told()["c"] == ("pending", "left: submit again")
    jobs = Jobs(submitted.folder)
    report = Array(token="trial.1.report", kind="report", stages=["report"], keys=["k"], number=8)
    jobs.write([*jobs.arrays(), report])
    submitted.slurm.jobs.append(
        Job(id="8_0", state="PENDING", reason="Dependency", token="trial.1.report")
    )
    assert submitted.told()["b"] == ("pending", "submitted with the next portion")
    submitted.record("a", "failed", "no")
    submitted.slurm.jobs.pop(0)
    assert submitted.told()["b"] == ("blocked", "a failed")
    rest.unlink()
    assert submitted.told()["c"] == ("blocked", "b blocked")


def test_a_stage_that_hangs_shows_how_long_it_made_no_progress(submitted):
    submitted.task(0, "RUNNING", elapsed="3:00:10", node="n1")
    place = submitted.folder / "stages" / "slurm" / "a.json"
    found = {"directory": "x", "phase": "train", "at": 40, "of": 125, "note": "", "time": 0}
    atomic.write_json(place, found)
    for ago, told in ((60, ""), (15 * 60, " (no progress for 15 min)"),
                      (3 * 3600, " (no progress for 3 h)")):  # fmt: skip
        os.utime(place, (time.time() - ago,) * 2)
        assert submitted.rows()["a"].progress == f"train 40/125{told}"
    submitted.record("a", "running")  # it has started again
    assert submitted.rows()["a"].progress == "train 40/125"


def theirs(submitted: Experiment, when: float = 0.0) -> Path:
    """Another experiment that has or had the stage `a` as task 9_0; the folder of its report."""
    folder = submitted.folder.parent / "other"
    works = [list(PLAN.stages[0].work)]
    Jobs(folder).write([Array(token="other.1.sft", kind="sft", stages=["a"], keys=["k"],
                              number=9, works=works, released=True, time=when)])  # fmt: skip
    return folder


def test_a_stage_that_another_experiment_has_in_the_queue_is_told_from_there(submitted):
    """Own tasks first; a stage without one is what the other experiment's task is."""
    theirs(submitted)
    submitted.slurm.jobs.append(
        Job(id="9_0", state="RUNNING", token="other.1.sft", node="n2", elapsed="0:07")
    )
    submitted.task(1, "PENDING", "Dependency")
    row = submitted.rows()["a"]
    told = ("running", "9_0", "on n2, job of experiment other", "0:07")
    assert (row.state, row.job, row.reason, row.elapsed) == told
    assert submitted.told()["b"] == ("waiting", "for a")
    submitted.task(0, "PENDING", "Dependency")
    assert submitted.told()["a"] == ("waiting", "for 9_0, the same run in other")


def test_a_run_that_failed_in_another_experiment_failed(experiment):
    """This experiment had no job of its own for it, or one that came before."""
    names, keys = ["b", "c"], ["k", "k"]
    jobs = Jobs(experiment.folder)
    later = Array(token="trial.2.sft", kind="sft", stages=names, keys=keys, number=7, time=2.0)
    jobs.write([later])
    record = {"state": "failed", "reason": "shapes differ", "job": "9_0"}
    atomic.write_json(theirs(experiment, when=2.0) / "stages" / "a.json", record)
    failed = ("failed", "shapes differ, job of experiment other; submit again")
    assert experiment.told() == {
        "a": failed, "b": ("blocked", "a failed"), "c": ("blocked", "b blocked"),
    }  # fmt: skip
    assert experiment.rows()["a"].job == "9_0"
    own = Array(token="trial.1.sft", kind="sft", stages=["a"], keys=["k"], number=5, time=1.0)
    jobs.write([own, later])
    assert experiment.told()["a"] == failed
    own.time = 3.0
    jobs.write([own, later])
    assert experiment.told()["a"] == ("cancelled", "left the queue before it started")


def test_a_run_that_another_experiment_gave_up_is_to_be_submitted(experiment):
    Jobs(experiment.folder).write([
        Array(token="trial.1.sft", kind="sft", stages=["b"], keys=["k"], number=7, time=2.0)
    ])  # fmt: skip
    theirs(experiment)
    gone = "left the queue before it started, job of experiment other; submit again"
    assert experiment.told()["a"] == ("cancelled", gone)
    assert experiment.told()["b"] == ("blocked", "a cancelled")
    rest = experiment.folder / "slurm" / "rest.json"
    atomic.write_json(rest, {"format": FORMAT, "stages": ["a"]})
    assert experiment.told()["a"] == ("pending", "left: submit again")


def test_a_stage_with_parents_names_those_that_are_not_there(submitted):
    submitted.task(0, "RUNNING", elapsed="0:10", node="n1")
    submitted.task(1, "PENDING", "Dependency")
    submitted.task(2, "PENDING", "Dependency")
    told = submitted.told()
    assert told["b"] == ("waiting", "for a")
    assert told["c"] == ("waiting", "for b")
    submitted.run("a", "done", train=1)
    assert submitted.told()["b"] == ("waiting", "dependency")


def test_a_running_stage_says_where_and_how_far(submitted):
    submitted.task(0, "RUNNING", elapsed="0:10", node="n1")
    assert submitted.rows()["a"].progress == "starting"
    atomic.write_json(
        submitted.folder / "stages" / "slurm" / "a.json",
        {"directory": "x", "phase": "train", "at": 40, "of": 125, "note": "loss 0.51", "time": 0},
    )
    row = submitted.rows()["a"]
    assert (row.state, row.reason, row.elapsed) == ("running", "on n1", "0:10")
    assert row.progress == "train 40/125 loss 0.51"


def test_a_stage_that_is_on_its_way_out_still_runs(submitted):
    submitted.task(0, "COMPLETING")
    assert submitted.told()["a"] == ("running", "")


def test_a_stage_that_somebody_runs_by_hand_runs(submitted):
    with Lock(submitted.run("a", "running")).holding():
        assert submitted.told()["a"] == ("running", "")


def told_progress(folder: Path, directory: Path, at: int, ago: float = 0.0) -> None:
    """What a stage `a` that writes a directory reported some seconds ago."""
    place = folder / "stages" / "slurm" / "a.json"
    record = {"directory": str(directory), "phase": "train", "at": at, "of": 125, "note": ""}
    atomic.write_json(place, record)
    os.utime(place, (time.time() - ago,) * 2)


def test_a_shared_stage_is_as_far_as_the_job_that_runs_it(submitted):
    """Its own job was cancelled long ago, after it had reported something."""
    run = submitted.run("a", "running")
    told_progress(submitted.folder, run, 10, ago=3600)
    submitted.task(0, "CANCELLED")
    told_progress(theirs(submitted, when=1.0), run, 40)
    submitted.slurm.jobs.append(Job(id="9_0", state="RUNNING", token="other.1.sft", node="n2"))
    assert submitted.rows()["a"].progress == "train 40/125"
    submitted.record("a", "running")  # of the job before; says nothing of this one
    told_progress(submitted.folder.parent / "other", run, 41, ago=600)
    assert submitted.rows()["a"].progress == "train 41/125 (no progress for 10 min)"


def test_a_stage_that_somebody_else_runs_is_as_far_as_its_directory(submitted):
    run = submitted.run("a", "running")
    told_progress(submitted.folder, submitted.home / "models" / "a-other", 10)
    with Lock(run).holding():
        assert submitted.rows()["a"].progress == ""
        (run / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5}\n{"eval')
        assert submitted.rows()["a"].progress == "step 7"
        told_progress(submitted.folder.parent / "other", run, 40)
        assert submitted.rows()["a"].progress == "train 40/125"


def test_a_failed_stage_says_why_and_blocks_what_stands_on_it(submitted):
    submitted.record("a", "failed", "shapes differ")
    submitted.task(0, "FAILED", "NonZeroExitCode")
    submitted.task(1, "CANCELLED", "DependencyNeverSatisfied")
    assert submitted.told() == {
        "a": ("failed", "shapes differ"),
        "b": ("blocked", "a failed"),
        "c": ("blocked", "b blocked"),
    }  # fmt: skip


def test_a_failed_stage_that_is_queued_again_waits(submitted):
    submitted.record("a", "failed", "shapes differ")
    submitted.task(0, "PENDING", "Resources")
    submitted.task(1, "PENDING", "Dependency")
    assert submitted.told()["a"] == ("waiting", "resources")
    assert submitted.told()["b"] == ("waiting", "for a")


def test_a_stage_whose_dependency_can_never_come_does_not_wait(submitted):
    submitted.record("a", "failed", "shapes differ")
    submitted.task(1, "PENDING", "DependencyNeverSatisfied")
    assert submitted.told()["b"] == ("blocked", "a failed")


LAST_WORDS = [
    pytest.param(
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks "
        "have been OOM Killed.", ("failed", "out of memory"), id="oom_kill",
    ),
    pytest.param(
        "slurmstepd: error: Detected 2 oom-kill event(s) in StepId=7.batch cgroup.",
        ("failed", "out of memory"), id="oom-kill",
    ),
    pytest.param(
        "slurmstepd: error: StepId=7.batch exceeded memory limit (4200 > 4000), being killed\n"
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***",
        ("failed", "out of memory"), id="exceeded-memory-limit",
    ),
    pytest.param(
        "slurmstepd: error: Job 7 exceeded job memory limit, being killed",
        ("failed", "out of memory"), id="exceeded-job-memory-limit",
    ),
    pytest.param(
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
        ("failed", "time limit reached before it saved"), id="time-limit",
    ),
    pytest.param(
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE, "
        "SEE SLURMCTLD LOG FOR DETAILS ***", ("failed", "node failure"), id="node-failure",
    ),
    pytest.param(
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***",
        ("stopped", "preempted"), id="preemption",
    ),
    pytest.param(
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***",
        ("cancelled", "cancelled"), id="cancelled",
    ),
    pytest.param(
        "line\nSegmentation fault (core dumped)\n\n",
        ("failed", "the job ended without a record: Segmentation fault (core dumped)"), id="other",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), LAST_WORDS)
@pytest.mark.parametrize("state", ["", "FAILED"])
def test_the_last_words_of_a_job_say_what_ended_it(submitted, words, told, state):
    submitted.record("a", "running")
    submitted.output(0, words + "\n")
    if state:
        submitted.task(0, state)
    assert submitted.told()["a"] == told


def test_the_last_words_are_found_behind_much_output(submitted):
    submitted.record("a", "running")
    submitted.output(0, "x" * 100_000 + "\nslurmstepd: error: Detected 1 oom_kill event\n")
    assert submitted.told()["a"] == ("failed", "out of memory")


STATES = [
    ("OUT_OF_MEMORY", ("failed", "out of memory")),
    ("TIMEOUT", ("failed", "time limit reached before it saved")),
    ("NODE_FAIL", ("failed", "node failure")),
    ("BOOT_FAIL", ("failed", "node did not boot")),
    ("DEADLINE", ("failed", "deadline reached")),
    ("PREEMPTED", ("stopped", "preempted")),
    ("CANCELLED", ("cancelled", "cancelled")),
]


@pytest.mark.parametrize(("state", "told"), STATES)
def test_slurm_remembers_how_a_job_ended(submitted, state, told):
    submitted.record("a", "running")
    submitted.task(0, state)
    assert submitted.told()["a"] == told


@pytest.mark.parametrize(("state", "told"), STATES)
def test_the_accounting_remembers_it_for_longer(submitted, state, told):
    submitted.record("a", "running")
    submitted.slurm.accounted = {"7_0": state}
    assert submitted.told()["a"] == told


def test_what_was_cancelled_is_cancelled_whatever_it_said_before(submitted):
    submitted.output(0, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT x DUE TO PREEMPTION ***\n")
    submitted.task(0, "CANCELLED")
    assert submitted.told()["a"] == ("cancelled", "cancelled")


def test_a_job_that_left_the_queue_without_a_trace_was_cancelled(submitted):
    assert submitted.told() == {
        "a": ("cancelled", "left the queue before it started"),
        "b": ("blocked", "a cancelled"), "c": ("blocked", "b blocked"),
    }  # fmt: skip


@pytest.mark.parametrize("state", ["", "FAILED"])
def test_a_job_that_was_killed_before_it_said_anything_had_started(submitted, state):
    """Its supervisor wrote that it runs, so it cannot have left the queue before."""
    submitted.record("a", "running")
    if state:
        submitted.task(0, state)
    assert submitted.told()["a"] == ("failed", "the job ended without a record")


def test_a_job_that_slurm_calls_failed_was_not_cancelled(submitted):
    """For example one whose set-up lines fail without a word: no supervisor ever began."""
    submitted.task(0, "FAILED", "NonZeroExitCode")
    assert submitted.told()["a"][0] == "failed"


def test_a_record_of_before_does_not_hide_that_a_job_was_to_go_on(submitted):
    submitted.record("a", "pending", "saved; requeued")
    assert submitted.told()["a"] == ("failed", "saved; requeued")


def test_a_local_supervisor_that_was_killed_leaves_a_stopped_stage(experiment):
    experiment.record("a", "running")
    assert experiment.told()["a"] == ("stopped", "its supervisor was killed; launch it again")


def test_a_local_stage_that_was_stopped_is_pending(experiment):
    experiment.record("a", "pending", "stopped on request")
    assert experiment.told()["a"] == ("pending", "stopped on request")


def test_where_slurm_does_not_answer_the_files_do(submitted):
    submitted.slurm.fails = True
    submitted.run("a", "done", train=1)
    submitted.record("b", "failed", "shapes differ")
    told = submitted.told()
    assert (told["a"], told["b"]) == (("done", ""), ("failed", "shapes differ"))


def test_where_slurm_does_not_answer_no_queued_stage_is_called_cancelled(submitted):
    """A controller that restarts is no reason to think that jobs are gone."""
    submitted.slurm.fails = True
    assert submitted.told()["a"][0] not in ("cancelled", "failed", "done")


def test_a_skipped_stage_says_why(experiment):
    fork = stage("fork-remaining", "a", role="fork", parent="a", sweetspot="ppl-2.0",
                 total_data=100)  # fmt: skip
    run = experiment.run("a", "done", train=1)
    outcome = {"sweetspots": {"ppl-2.0": {"state": "unreached", "best": 2.31}}}
    atomic.write_json(run / "result.json", outcome)
    plan = Plan(experiment="trial", stages=(PLAN.stages[0], fork))
    found = states(stages_of(plan, experiment.home, experiment.slurm))
    assert found["fork-remaining"] == ("skipped", "perplexity never reached 2.0 (best 2.31)")


def test_a_table_has_a_column_for_what_is_known_and_no_reason_is_cut():
    rows = [
        StageStatus(stage="a", state="done", metric="loss 0.5"),
        StageStatus(stage="long-name", state="failed", reason="no such file: /a/b/c"),
    ]
    assert table(rows) == (
        "stage      state   metric    reason\n"
        "a          done    loss 0.5\n"
        "long-name  failed            no such file: /a/b/c"
    )
    assert table(rows, width=60) == table(rows)
    assert table(rows, width=25) == (
        "state   stage\ndone    a\n    loss 0.5\nfailed  long-name\n    no such file: /a/b/c"
    )
    assert table([]) == ""


def planned(experiment: Experiment) -> None:
    """Write the plan down, as every launcher does."""
    atomic.write_json(experiment.folder / "plan.json", PLAN.to_json())


def test_the_status_command_prints_counts_and_a_table(experiment, capsys):
    planned(experiment)
    experiment.run("a", "done", train=61)
    experiment.record("b", "failed", "shapes differ")
    assert cli.main(["status", "trial"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "experiment trial: 1 done, 1 failed, 1 blocked",
        "",
        "stage  state    elapsed  reason",
        "a      done     0:01:01",
        "b      failed            shapes differ",
        "c      blocked           b failed",
    ]


def test_the_status_command_names_the_report_where_there_is_one(experiment, capsys):
    planned(experiment)
    report = site.reports_dir() / "trial" / "report.html"
    report.write_text("")
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {report}"


def test_the_status_command_speaks_json(experiment, capsys):
    planned(experiment)
    experiment.run("a", "done", train=61)
    assert cli.main(["status", "trial", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found] == ["a", "b", "c"]
    assert found[0] == {
        "stage": "a", "state": "done", "job": "", "reason": "", "progress": "", "metric": "",
        "elapsed": "0:01:01",
    }  # fmt: skip


def test_watching_ends_when_every_stage_has_and_says_whether_one_failed(experiment, capsys):
    planned(experiment)
    for name in "abc":
        experiment.run(name, "done", train=1)
    assert cli.main(["status", "trial", "--watch"]) == 0
    (experiment.home / "models" / "c" / "status.json").unlink()
    experiment.record("c", "failed", "shapes differ")
    assert cli.main(["status", "trial", "--watch"]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_looking_writes_nothing(submitted, tmp_path):
    submitted.run("a", "done", train=1)
    submitted.output(1, "words\n")
    before = {path: path.stat().st_mtime_ns for path in submitted.home.rglob("*")}
    submitted.told()
    assert {path: path.stat().st_mtime_ns for path in submitted.home.rglob("*")} == before
    assert os.environ["TUNING_HOME"] == str(submitted.home)


def test_status_imports_nothing_heavy(tmp_path):
    plan = Plan(experiment="light", stages=(Stage(name="a", role="sft", hash="0" * 64,
                script="run_sft.py", phases=("train",)),))  # fmt: skip
    atomic.write_json(tmp_path / "outputs/reports/light/plan.json", plan.to_json())
    code = (
        "import sys; from tuning import cli; cli.main(['status', 'light']); "
        "print(sorted({'torch', 'transformers', 'trl', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TUNING_HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "pending" in done.stdout and done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [("slurmstepd: error: Detected 1 oom_kill event", "out of memory"), ("", "killed by SIGKILL")],
)
def test_slurm_may_know_what_killed_a_stage(submitted, words, reason):
    submitted.record("a", "failed", "killed by SIGKILL", signal="SIGKILL")
    submitted.output(0, words)
    assert submitted.told()["a"] == ("failed", reason)


def test_the_log_of_a_run_that_another_experiment_queued_is_found_there(submitted, capsys):
    submitted.output(0, "its set-up lines\n")
    atomic.write_text(submitted.folder / "logs" / "a.txt", "step 1\n")
    second = Plan(experiment="second", stages=PLAN.stages)
    assert logs([PLAN, second], "a", follow=False) == 0
    assert capsys.readouterr().out.splitlines() == ["step 1", "its set-up lines"]
    atomic.write_text(submitted.folder.parent / "second" / "logs" / "a.txt", "its own\n")
    assert logs([PLAN, second], "a", follow=False) == 0
    assert capsys.readouterr().out == "its own\n"
    other = Plan(experiment="third", stages=(replace(PLAN.stages[0], hash="f" * 64),))
    with pytest.raises(UserError, match="'a' has no log yet"):
        logs([PLAN, other], "a", follow=False)
