"""Whatever befalls a job, its run ends complete, with the weights of an undisturbed one and no step
counted twice: preemption, the time limit, signals, kill -9, a dead node. What cannot go on says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import copy_home
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Site, wait_for
from tuning.config import CHECKOUT
from tuning.runs.rundir import RunDirectory

STAGE = CHECKOUT / "slurm/stage.sbatch"
DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--do_training")
SFT = ("tuning/run_sft.py", *DATA, "--train_size", "240", "--num_train_epochs", "4")
METHODS = {
    "dpo": ("--pft_method", "dpo", "--train_size", "160"),
    "kto": ("--pft_method", "kto", "--train_size", "160"),
    "grpo": ("--pft_method", "grpo", "--train_size", "48"),
}


def command(kind: str) -> tuple[str, ...]:
    """The stage command of a kind of training."""
    return SFT if kind == "sft" else ("tuning/run_dpo.py", *DATA, *METHODS[kind])


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, trained_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A home in which all kinds were trained without a disturbance."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("undisturbed") / "home")
    site = Site(cluster, home)
    for kind in ("sft", "dpo", "kto"):
        script, *flags = command(kind)
        site.entry(Path(script).name, *flags)
    return home


def the_run(home: Path) -> RunDirectory | None:
    """The run that is not `tiny`."""
    found = list((home / "models").glob("tiny*_*/config.json"))
    return RunDirectory(found[0].parent) if found else None


def started(site: Site, kind: str, *options: str) -> str:
    """The job id of a stage submitted by hand, once it has trained some steps."""
    job = site.by_hand("--time", "20", *options, STAGE, *command(kind))
    wait_for(lambda: at(site.home) >= 3, 90, lambda: (site.queue(), at(site.home)))
    return job


def at(home: Path) -> int:
    """The step that the running stage has come to."""
    run = the_run(home)
    told = run.path / "progress.json" if run else None
    return int(json.loads(told.read_text())["at"]) if told and told.exists() else 0


def ends_undisturbed(site: Site, job: str, kind: str, undisturbed: Path) -> None:
    """The run is done, as if nothing had been."""
    wait_for(lambda: site.state(job) == "COMPLETED", 180, lambda: (site.queue(), said(site, job)))
    run = the_run(site.home)
    assert run is not None and run.done("train")
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == run.result["global_step"]
    if kind == "grpo":
        return
    same = undisturbed / "models" / run.name
    weights = "model/adapter_model.safetensors"
    assert (run.path / weights).read_bytes() == (same / weights).read_bytes()
    assert steps == [line["step"] for line in RunDirectory(same).metrics() if "loss" in line]


def said(site: Site, job: str) -> str:
    """What a job printed."""
    path = site.home.parent / f"slurm-{job}.out"
    return path.read_text() if path.exists() else ""


def training_process(site: Site) -> int:
    """The process id of the training."""
    run = the_run(site.home)
    assert run is not None
    return int(json.loads((run.path / "lock.json").read_text())["pid"])


@contextlib.contextmanager
def paused(site: Site) -> Iterator[None]:
    """Keep the training where it is, so that it cannot end before SLURM disturbs it."""
    pid = training_process(site)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def requeued(site: Site, job: str) -> bool:
    """Whether a job was put back into the queue; it may run again already."""
    return "Restarts=1" in site.cluster.run("scontrol", "show", "job", job)


def preempt(site: Site, job: str) -> None:
    """A job in the higher partition that needs both nodes."""
    with paused(site):
        site.by_hand(
            "--partition", "high", "--nodes", "2", "--exclusive", "--time", "1", "--wrap", "sleep 3"
        )
        wait_for(lambda: site.state(job) != "RUNNING", 60, site.queue)
    wait_for(lambda: requeued(site, job), 60, lambda: (site.queue(), said(site, job)))


def preempt_for_good(site: Site, job: str) -> None:
    """Where preempted jobs are cancelled, they put themselves back into the queue."""
    site.cluster.run("scontrol", "update", "PartitionName=low", "PreemptMode=CANCEL")
    try:
        preempt(site, job)
    finally:
        site.cluster.run("scontrol", "update", "PartitionName=low", "PreemptMode=REQUEUE")


def signal_term(site: Site, job: str) -> None:
    site.cluster.run("scancel", "--signal=TERM", "--batch", job)
    wait_for(lambda: requeued(site, job), 60, lambda: (site.queue(), said(site, job)))


def kill_training(site: Site, job: str) -> None:
    """kill -9 of the training process."""
    os.kill(training_process(site), signal.SIGKILL)
    wait_for(lambda: requeued(site, job), 60, lambda: (site.queue(), said(site, job)))


@pytest.mark.parametrize(
    ("kind", "disturb"),
    [
        ("sft", preempt), ("dpo", preempt), ("sft", preempt_for_good), ("sft", signal_term),
        ("kto", signal_term), ("grpo", signal_term), ("sft", kill_training), ("dpo", kill_training),
    ],
)  # fmt: skip
def test_a_disturbed_run_ends_like_an_undisturbed_one(
    user: Site, undisturbed: Path, kind: str, disturb: Callable[[Site, str], None]
) -> None:
    job = started(user, kind)
    disturb(user, job)
    ends_undisturbed(user, job, kind, undisturbed)
    assert requeued(user, job)


def test_the_time_limit_is_survived(user: Site, undisturbed: Path) -> None:
    """SLURM looks at limits every half minute and warns that much too early: after 30 to 60 s. The
    training stands still until then.
    """
    job = started(user, "sft", "--time", "2", "--signal", "B:USR1@60")
    with paused(user):
        wait_for(lambda: is_told(training_process(user), signal.SIGUSR1), 90, user.queue)
    wait_for(lambda: requeued(user, job), 60)
    user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    ends_undisturbed(user, job, "sft", undisturbed)
    assert attempts(user, job) == 2
    assert "received SIGUSR1" in said(user, job)


def attempts(site: Site, job: str) -> int:
    """How often the stage of a job was started."""
    record = site.home / "outputs/jobs" / job / "record.json"
    return int(json.loads(record.read_text())["attempts"])


def is_told(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process that stands still."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (waiting,) = (line.split()[1] for line in lines if line.startswith("ShdPnd:"))
    return bool(int(waiting, 16) >> (number - 1) & 1)


def test_two_processes_of_trl_are_requeued_and_have_the_losses_of_one(
    user: Site, undisturbed: Path
) -> None:
    job = started(user, "sft", "--cpus-per-task", "2", "--export", "ALL,TUNING_PROCESSES=2")
    signal_term(user, job)
    wait_for(lambda: user.state(job) == "COMPLETED", 180, lambda: (user.queue(), said(user, job)))
    run = the_run(user.home)
    assert run is not None and run.result["processes"] == 2
    assert attempts(user, job) == 2
    losses, alone = (
        {line["step"]: line["loss"] for line in found.metrics() if "loss" in line}
        for found in (run, RunDirectory(undisturbed / "models" / run.name))
    )
    assert losses == pytest.approx(alone, rel=1e-5)


def test_a_dead_node_is_survived(user: Site, undisturbed: Path) -> None:
    job = started(user, "sft")
    node = user.cluster.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    user.cluster.kill_node(node, job)
    try:
        wait_for(lambda: requeued(user, job), 90)
        ends_undisturbed(user, job, "sft", undisturbed)
    finally:
        user.cluster.start_node(node)
        wait_for(lambda: user.cluster.idle() == 2, 60, lambda: user.cluster.run("sinfo"))


def test_a_stage_that_exceeds_its_memory_fails_and_says_so(user: Site) -> None:
    flags = ("--task", "math", "--dataset", "arith", "--sft_ratio", "1", "--base_model", "tiny")
    sizes = ("--train_sizes", "32", "--do_training")
    user.run("bash", CHECKOUT / "slurm/run.sh", *flags, *sizes, "--mem", "150")
    user.wait_idle()
    (row,) = [row for name, row in user.status().items() if name != "tiny"]
    assert (row["state"], row["reason"]) == ("failed", "out of memory")
    user.run("bash", CHECKOUT / "slurm/run.sh", *flags, *sizes)
    user.wait_idle()
    (row,) = [row for name, row in user.status().items() if name != "tiny"]
    assert row["state"] == "done"


NO_PROGRESS = """
import sys, time
from tuning.runs.rundir import tell
tell(directory="somewhere", phase="train", at=1, of=9, note="", time=0.0)
sys.exit(75)
"""


def test_a_stage_that_gets_nowhere_is_not_requeued_for_ever(user: Site, tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(NO_PROGRESS)
    job = user.by_hand(STAGE, script)
    wait_for(lambda: user.state(job) == "FAILED", 60, user.queue)
    record = json.loads((user.home / "outputs/jobs" / job / "record.json").read_text())
    assert record["reason"] == "stopped again and again without progress"
    assert record["attempts"] == 2


ONE_OF_SEVERAL = """
import os, sys, time
from tuning.runs import interrupt
from tuning.runs.rundir import tell
interrupt.install()
task = os.environ["SLURM_ARRAY_TASK_ID"]
open(sys.argv[1], "a").write(task + "\\n")
tell(directory=task, phase="train", at=1, of=9, note="", time=0.0)
while task == "2" and "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(0.1)
    if interrupt.asked_to_stop():
        sys.exit(75)
"""


def test_a_task_of_an_array_requeues_itself_and_no_other(user: Site, tmp_path: Path) -> None:
    """The last task of an array has the number of the whole array for its own."""
    script, told = tmp_path / "stage.py", tmp_path / "told"
    script.write_text(ONE_OF_SEVERAL)
    job = user.by_hand("--array", "0-2", STAGE, script, told)

    def states() -> list[str]:
        return [user.state(f"{job}_{task}") for task in range(3)]

    wait_for(lambda: states() == ["COMPLETED", "COMPLETED", "RUNNING"], 60, user.queue)
    wait_for(lambda: told.read_text().count("2") == 1, 20)
    user.cluster.run("scancel", "--signal=TERM", "--batch", f"{job}_2")
    wait_for(lambda: told.read_text().count("2") == 2, 60, user.queue)
    wait_for(lambda: states() == ["COMPLETED"] * 3, 60, user.queue)
    assert sorted(told.read_text().split()) == ["0", "1", "2", "2"]


def test_two_jobs_on_one_run_train_it_once(user: Site) -> None:
    jobs = [user.by_hand("--time", "20", STAGE, *command("sft")) for _ in range(2)]
    for job in jobs:
        wait_for(lambda job=job: user.state(job) == "COMPLETED", 180, user.queue)
    run = the_run(user.home)
    assert run is not None and run.done("train")
    logs = [path.read_text() for path in user.home.parent.glob("slurm-*.out")]
    assert len(logs) == 2
    assert sum(f"{run.name}: trained" in log for log in logs) == 1
    assert sum(f"{run.name}: already trained" in log for log in logs) == 1
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    assert steps == sorted(set(steps))


def test_jobs_on_a_node_have_gpus_of_their_own(user: Site, tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(
        "import os, sys, time\n"
        "open(sys.argv[1], 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n')\n"
        "time.sleep(2)\n"
    )
    told = tmp_path / "devices"
    options = ("--gres", "gpu:1", "--nodelist", "n1", "--cpus-per-task", "1")
    jobs = [user.by_hand(*options, STAGE, script, told) for _ in range(2)]
    for job in jobs:
        wait_for(lambda job=job: user.state(job) == "COMPLETED", 60, user.queue)
    assert sorted(told.read_text().split()) == ["0", "1"]
