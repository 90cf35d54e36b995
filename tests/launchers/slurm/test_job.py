"""What a SLURM job runs: one stage, forks that it lets go, and a way back into the queue.

A small SLURM that notes what it is asked stands for the cluster; stages run for real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.small_site import COLLECTIONS
from tuning.config import CHECKOUT, PACKAGE
from tuning.launchers.slurm import job as job_module
from tuning.launchers.slurm.job import TRIES, WATCH_SECONDS, Allocation, Forks
from tuning.launchers.slurm.ledger import Array, Jobs
from tuning.plan import Plan, Stage
from tuning.runs import atomic, manifest
from tuning.runs.errors import StageFailed
from tuning.runs.identity import FORMAT
from tuning.runs.rundir import Identity, claim
from tuning.sweetspots.store import METADATA, checkpoint_name

pytestmark = pytest.mark.unit


class Asked:
    """A SLURM whose answers are given beforehand, and what it was asked."""

    def __init__(
        self, state: str = "RUNNING", failures: int = 0, *, preempted: bool = False
    ) -> None:
        self.answer = state
        self.given_up = preempted
        self.failures = failures
        self.asked: list[tuple] = []

    def _try(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StageFailed("squeue did not answer within 60 s.")

    def state(self, job: str) -> str:
        self.asked.append(("state", job))
        self._try()
        return self.answer

    def preempted(self, job: str) -> bool:
        return self.given_up

    def requeue(self, job: str) -> None:
        self.asked.append(("requeue", job))

    def depend(self, number: int, indices: list[int], condition: str) -> None:
        self.asked.append(("depend", number, indices, condition))
        self._try()


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Tries follow each other at once; the pauses that were asked for."""
    pauses: list[float] = []
    monkeypatch.setattr(job_module.time, "sleep", pauses.append)
    return pauses


def requeue(slurm: Asked) -> tuple[bool, list[str]]:
    """Put a job back; whether that was its end, and what was recorded, in order of events."""
    said: list[str] = []

    def record(reason: str) -> None:
        slurm.asked.append(("record",))
        said.append(reason)

    return Allocation(slurm, "17").requeue("saved", record), said


def test_a_running_job_is_put_back_and_says_so_before_slurm_ends_it():
    slurm = Asked()
    assert requeue(slurm) == (True, ["saved; requeued"])
    assert slurm.asked == [("state", "17"), ("record",), ("requeue", "17")]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("CANCELLED", "saved; SLURM says cancelled"),
        ("COMPLETING", "saved; SLURM says completing"),
        ("PENDING", "saved; SLURM says pending"),
        ("PREEMPTED", "saved; SLURM says preempted"),
        ("", "saved; SLURM says nothing"),
    ],
)
def test_a_job_that_slurm_is_ending_is_not_put_back(state, said):
    slurm = Asked(state)
    assert requeue(slurm) == (True, [said])
    assert ("requeue", "17") not in slurm.asked


def test_a_preempted_job_that_slurm_does_not_requeue_does_it_itself():
    slurm = Asked("COMPLETING", preempted=True)
    assert requeue(slurm) == (True, ["saved; requeued"])
    assert ("requeue", "17") in slurm.asked


def test_slurm_is_asked_again_while_it_does_not_answer(no_sleep):
    slurm = Asked(failures=TRIES - 1)
    ended, said = requeue(slurm)
    assert (ended, said[-1]) == (True, "saved; requeued")
    assert slurm.asked[-1] == ("requeue", "17")
    assert len(no_sleep) == TRIES - 1
    assert said[0].startswith("saved; could not be requeued: squeue did not answer")


def test_a_slurm_that_never_answers_leaves_the_stage_to_be_continued(no_sleep, monkeypatch):
    monkeypatch.setattr(job_module, "RETRY_SECONDS", 0.05)
    slurm = Asked(failures=10**9)
    ended, said = requeue(slurm)
    assert ended and len(said) > 5
    assert ("requeue", "17") not in slurm.asked


def test_forks_are_looked_after_every_few_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(job_module.time, "monotonic", lambda: now[0])
    looks: list[float] = []
    place = Allocation(Asked(), "17", release=lambda: looks.append(now[0]))
    for _ in range(50):
        place.watch()
        now[0] += WATCH_SECONDS / 10
    assert len(looks) == 5
    Allocation(Asked(), "17").watch()


SFT = Stage(name="sft", role="sft", hash="a" * 64, script="x.py", phases=("train",))
FORK = Stage(name="fork-remaining", role="fork", hash="b" * 64, script="x.py", parent="sft",
             parents=("sft",), sweetspot="ppl-2.0", total_data=100, phases=("train",))  # fmt: skip
SPOT = Stage(name="spot", role="sweetspot", hash="c" * 64, script="x.py", parent="sft",
             parents=("sft",), sweetspot="ppl-3.0", trains=False)  # fmt: skip
OTHER = Stage(name="other", role="pt", hash="d" * 64, script="x.py", parents=("sft",))
PLAN = Plan(experiment="trial", stages=(SFT, FORK, SPOT, OTHER))


class Experiment:
    """A submitted experiment whose SFT runs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "outputs" / "reports" / "trial"
        self.slurm = Asked()
        self.forks = Forks(self.slurm, self.folder, "sft")
        atomic.write_json(self.folder / "plan.json", PLAN.to_json())
        self.submit(7)

    def submit(self, number: int | None) -> None:
        """Submit all stages as an array, once more."""
        stages = PLAN.stages
        array = Array(token=f"trial.{number}.pft", kind="pft", stages=[s.name for s in stages],
                      keys=[s.key for s in stages], number=number)  # fmt: skip
        Jobs(self.folder).write([*Jobs(self.folder).arrays(), array])

    def reach(self, label: str) -> None:
        """Make a sweetspot whole."""
        identity = Identity(run_name="sft", kind="sft", hash=SFT.hash, hashed={}, settings={})
        with claim(self.home / "models", identity) as directory:
            folder = directory.path / checkpoint_name(label)
            atomic.write_json(folder / METADATA, {"sft_data_used": 40})
            manifest.write_manifest(folder)


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Experiment:
    monkeypatch.setenv("TUNING_HOME", str(tmp_path))
    return Experiment(tmp_path)


def test_a_fork_is_let_go_once_its_sweetspot_is_whole(experiment, capsys):
    experiment.forks.release()
    assert experiment.slurm.asked == []
    experiment.reach("ppl-2.0")
    for _ in range(3):
        experiment.forks.release()
    assert experiment.slurm.asked == [("depend", 7, [1], "")]
    assert capsys.readouterr().out == "fork-remaining: released, its checkpoint exists\n"


def test_a_checkpoint_that_is_not_whole_lets_nothing_go(experiment):
    experiment.reach("ppl-2.0")
    (experiment.home / "models" / "sft" / "checkpoint-sweetspot-2.0" / "manifest.json").unlink()
    experiment.forks.release()
    assert experiment.slurm.asked == []


def test_each_sweetspot_lets_go_what_waits_for_it(experiment):
    experiment.reach("ppl-2.0")
    experiment.forks.release()
    experiment.reach("ppl-3.0")
    experiment.forks.release()
    assert experiment.slurm.asked == [("depend", 7, [1], ""), ("depend", 7, [2], "")]


def test_a_fork_that_is_submitted_again_is_let_go_again(experiment):
    experiment.reach("ppl-2.0")
    experiment.forks.release()
    experiment.submit(9)
    experiment.forks.release()
    assert experiment.slurm.asked == [("depend", 7, [1], ""), ("depend", 9, [1], "")]


def test_what_a_submission_sets_after_it_was_lifted_is_lifted_again(experiment):
    """A submission that saw no sweetspot makes the fork wait, and writes jobs.json when it has."""
    experiment.reach("ppl-2.0")
    experiment.forks.release()
    jobs = Jobs(experiment.folder)
    arrays = jobs.arrays()
    arrays[0].released = True
    jobs.write(arrays)
    experiment.forks.release()
    experiment.forks.release()
    assert experiment.slurm.asked == [("depend", 7, [1], "")] * 2


def test_a_fork_that_has_no_job_yet_is_let_go_when_it_has(experiment):
    experiment.reach("ppl-2.0")
    Jobs(experiment.folder).write([])
    experiment.forks.release()
    assert experiment.slurm.asked == []
    experiment.submit(8)
    experiment.forks.release()
    assert experiment.slurm.asked == [("depend", 8, [1], "")]


def test_a_cluster_that_forbids_it_is_asked_a_few_times(experiment, capsys):
    experiment.slurm.failures = 9
    experiment.reach("ppl-2.0")
    for _ in range(TRIES + 3):
        experiment.forks.release()
    assert len(experiment.slurm.asked) == TRIES
    assert "fork-remaining: not released (squeue did not answer" in capsys.readouterr().out


def test_an_experiment_that_was_never_planned_has_no_forks(tmp_path):
    slurm = Asked()
    Forks(slurm, tmp_path, "sft").release()
    assert slurm.asked == []


# whole jobs, as bash starts them

STAGE = """
import json, os, sys, time
from tuning.runs import interrupt
from tuning.runs.progress import tell
interrupt.install()
words = sys.argv[1:]
if "--stage" in words:
    words += json.load(open(words[words.index("--stage") + 1]))["stage"]["run"]["flags"]
print(json.dumps([words, {k: os.environ.get(k) for k in
    ("OMP_NUM_THREADS", "TUNING_PARENT", "PYTHONPATH", "TUNING_PROGRESS")}]), flush=True)
tell(directory="run", phase="train", at=int(os.environ.get("AT", "1")), of=9, note="", time=0)
for _ in range(int(os.environ.get("ROUNDS", "0"))):
    time.sleep(0.05)
    if interrupt.asked_to_stop():
        sys.exit(75)
if "--fail" in words:
    sys.exit("error: it was not to be")
"""
SLURM = """#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
case "$0" in *squeue) echo RUNNING;; esac
"""


class Machine:
    """Starts jobs on this machine, with commands on the PATH that stand for SLURM."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        self.calls = root / "calls"
        self.stage = root / "stage.py"
        self.stage.write_text(STAGE)
        (root / "collections.yaml").write_text(COLLECTIONS)
        (root / "bin").mkdir()
        for name in ("squeue", "scontrol"):
            (root / "bin" / name).write_text(SLURM)
            (root / "bin" / name).chmod(0o755)

    def environment(self, **values: str) -> dict[str, str]:
        """The environment of a job, without that of whoever runs the tests."""
        kept = {k: v for k, v in os.environ.items()
                if not k.startswith(("SLURM_", "TUNING_", "OMP_"))}  # fmt: skip
        return kept | {
            "TUNING_HOME": str(self.home), "PYTHONPATH": str(CHECKOUT), "CALLS": str(self.calls),
            "TUNING_COLLECTIONS": str(self.root / "collections.yaml"),
            "PATH": f"{self.root}/bin:{os.environ['PATH']}", **values,
        }  # fmt: skip

    def start(self, *words: str, **values: str) -> subprocess.Popen[str]:
        """Start a job."""
        return subprocess.Popen(
            [sys.executable, "-m", "tuning.launchers.slurm.job", *words], text=True, cwd=self.root,
            env=self.environment(**values), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, **values: str) -> tuple[int, str, str]:
        """Run a job: its exit code, what it said, and its errors."""
        process = self.start(*words, **values)
        out, errors = process.communicate(timeout=60)
        return process.returncode, out, errors

    def submitted(self, *flags: str) -> str:
        """The tasks file of an array whose second task is the stage."""
        stages = [Stage(name=name, role="sft", hash="a" * 64, phases=("train",),
                        script=str(self.stage), run={"flags": flags})
                  for name in ("zero", "one")]  # fmt: skip
        path = self.home / "outputs" / "reports" / "trial" / "slurm" / "trial.1.sft.json"
        atomic.write_json(path, {
            "format": FORMAT, "folder": str(path.parent.parent), "wandb": "offline",
            "stages": [asdict(stage) for stage in stages],
        })  # fmt: skip
        return str(path)

    @property
    def folder(self) -> Path:
        """That of the submitted experiment."""
        return self.home / "outputs" / "reports" / "trial"


JOB = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "3"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def said(log: Path) -> tuple[list[str], dict[str, str]]:
    """The flags and the environment that a stage was started with."""
    return json.loads(log.read_text().splitlines()[0])


def test_a_task_runs_its_stage_and_leaves_record_progress_and_log(machine):
    code, out, errors = machine.run("--tasks", machine.submitted("--x", "1"), **JOB)
    assert (code, out, errors) == (0, "one: done\n", "")
    flags, environment = said(machine.folder / "logs" / "one.txt")
    file = machine.folder / "stages" / "one.stage.json"
    assert flags == ["--stage", str(file), "--wandb", "offline", "--x", "1"]
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"].split(":")[0] == str(CHECKOUT)
    assert environment["TUNING_PROGRESS"] == str(machine.folder / "stages/slurm/one.json")
    assert atomic.read_json(machine.folder / "stages" / "one.json")["state"] == "done"
    assert not machine.calls.exists()


def test_threads_that_were_asked_for_are_kept_and_no_launcher_is_a_parent(machine):
    machine.run(
        "--tasks", machine.submitted(), **JOB, OMP_NUM_THREADS="7", TUNING_PARENT="1"
    )  # fmt: skip
    environment = said(machine.folder / "logs" / "one.txt")[1]
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["TUNING_PARENT"] != "1"


def test_a_task_that_fails_says_why_in_its_output(machine):
    code, out, _ = machine.run("--tasks", machine.submitted("--fail"), **JOB)
    assert (code, out) == (1, "one: failed: it was not to be\n")
    record = atomic.read_json(machine.folder / "stages" / "one.json")
    assert (record["state"], record["reason"]) == ("failed", "it was not to be")


def test_a_task_that_is_asked_to_stop_goes_back_into_the_queue_and_goes_on(machine):
    tasks = machine.submitted()
    process = machine.start("--tasks", tasks, **JOB, ROUNDS="600")
    log = machine.folder / "logs" / "one.txt"
    wait(lambda: log.exists() and "--wandb" in log.read_text())
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    reason = "received SIGUSR1; requeued"
    assert out == "one: to be continued\n"
    assert machine.calls.read_text() == "squeue -h -t all -j 17 -o %T\nscontrol requeue 17\n"
    record = machine.folder / "stages" / "one.json"
    assert atomic.read_json(record)["reason"] == reason
    assert machine.run("--tasks", tasks, **JOB, SLURM_RESTART_COUNT="1", AT="2")[0] == 0
    assert atomic.read_json(record)["attempts"] == 2
    assert atomic.read_json(record)["furthest"] == {"run:train": 2}


def wait(ready, seconds: float = 20.0) -> None:
    """Wait, with pauses of our own, until something is so."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        pause.wait(0.02)


def test_a_task_without_a_file_is_one_line(machine):
    code, out, errors = machine.run("--tasks", "/nowhere/x.json", **JOB)
    assert (code, out) == (2, "")
    assert (
        errors
        == "error: there is no file '/nowhere/x.json', which lists the stages of this array.\n"
    )


def test_a_stage_by_hand_runs_here_where_there_is_no_slurm(machine):
    code, out, errors = machine.run(str(machine.stage), "--x", "1")
    assert (code, out.splitlines()[-1], errors) == (0, "record: done", "")
    (folder,) = (machine.home / "outputs" / "jobs").iterdir()
    assert folder.name.startswith("local-")
    assert said(folder / "log.txt")[0] == ["--x", "1"]
    assert atomic.read_json(folder / "record.json")["state"] == "done"
    assert not machine.calls.exists()


def test_a_stage_by_hand_that_fails_ends_the_job_with_its_code_and_reason(machine):
    code, out, _ = machine.run(str(machine.stage), "--fail")
    assert (code, out) == (1, "record: failed: it was not to be\n")


def test_a_stage_by_hand_that_saves_is_started_again_here(machine):
    """Somebody who started it in a shell has no queue to wait in."""
    machine.stage.write_text(
        "import sys\nfrom pathlib import Path\nfrom tuning.runs.progress import tell\n"
        "count = Path(sys.argv[1])\nat = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (at + 1))\n"
        "tell(directory='run', phase='train', at=at + 1, of=3, note='', time=0)\n"
        "sys.exit(75 if at < 2 else 0)\n"
    )
    count = machine.root / "count"
    assert machine.run(str(machine.stage), str(count))[0] == 0
    assert count.read_text() == "xxx"


def test_a_stage_by_hand_in_a_job_writes_under_its_number_and_goes_back_into_the_queue(machine):
    machine.stage.write_text(
        "import sys\nfrom tuning.runs.progress import tell\n"
        "tell(directory='run', phase='train', at=1, of=3, note='', time=0)\nsys.exit(75)\n"
    )
    code, out, _ = machine.run(str(machine.stage), SLURM_JOB_ID="17")
    assert (code, out) == (75, "record: to be continued\n")
    assert machine.calls.read_text().endswith("scontrol requeue 17\n")
    assert (machine.home / "outputs" / "jobs" / "17" / "record.json").exists()


@pytest.mark.parametrize("mode", ["a", "w"])
def test_the_output_of_a_stage_by_hand_goes_to_the_output_of_its_job(machine, mode):
    """Opened to be appended to, as SLURM does, or as a shell does it."""
    output = machine.root / "slurm-17.out"
    with output.open(mode) as file:
        done = subprocess.run(
            [sys.executable, "-m", "tuning.launchers.slurm.job", str(machine.stage), "--x"],
            env=machine.environment(SLURM_JOB_ID="17"), stdout=file, check=True,
        )  # fmt: skip
    assert done.returncode == 0
    lines = output.read_text().splitlines()
    assert json.loads(lines[0])[0] == ["--x"]
    assert lines[-1] == "record: done"


def test_a_stage_of_this_code_may_be_named_from_its_root(machine):
    code, out, _ = machine.run("tuning/run_sft.py", "--help")
    assert (code, out.splitlines()[-1]) == (0, "record: done")
    assert PACKAGE.parent == CHECKOUT


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "error: name a script: sbatch slurm/stage.sbatch tuning/run_sft.py --model ...\n"),
        (["--model", "x"], "error: name a script: sbatch slurm/stage.sbatch "
                           "tuning/run_sft.py --model ...\n"),
        (["tuning/run_stf.py"], f"error: there is no 'tuning/run_stf.py' in {CHECKOUT}.\n"),
    ],
)  # fmt: skip
def test_a_job_without_a_stage_is_one_line(machine, words, error):
    assert machine.run(*words) == (2, "", error)
