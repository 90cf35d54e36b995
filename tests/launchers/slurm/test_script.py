"""Job scripts, letter by letter: files under golden/ hold what a script has to look like.

After a wanted change: TUNING_GOLDEN=write python -m pytest tests/launchers/slurm/test_script.py
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launchers.slurm.fake_cluster import read_script
from tests.small_site import use
from tuning.launchers.slurm.resources import Cluster, Resources
from tuning.launchers.slurm.script import (
    ENDED_IN_SETUP,
    STOPPED_IN_SETUP,
    ArrayJob,
    options,
    render,
)
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan, Stage

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"
SECRETS = {"WANDB_API_KEY": "wandb-0123456789", "HF_TOKEN": "hf_abcdefghij"}


def job(home: str = "/data/tuning", count: int = 1, kind: str = "sft", **environment) -> ArrayJob:
    """An array of an experiment called `trial`."""
    folder = Path(home) / "outputs" / "reports" / "trial" / "slurm"
    code = Path(home) / "snapshots" / "0123456789abcdef"
    token = f"trial.1.{kind}"
    return ArrayJob(
        token=token, count=count, code=code, tasks=folder / f"{token}.json", output=folder,
        environment={"TUNING_HOME": home, "TUNING_CODE": str(code), **environment},
    )  # fmt: skip


SINGLE = (job(), Resources())
ARRAY = (
    job(count=40, kind="pft", TUNING_PROCESSES="1", HF_HUB_OFFLINE="1"),
    Resources(
        partition="gpu,backup", account="mine", qos="normal", gres="gpu:1", constraint="a100",
        cpus=8, mem="64G", time="1-00:00:00", throttle=16, options=("--exclusive", "--nice=100"),
    ),
)  # fmt: skip
NODES = (
    job(home="/data/my runs/50%", kind="pretrain", TUNING_PYTHON="/opt/it's/python"),
    Resources(
        nodes=2, processes=4, gres="gpu:4", signal_seconds=300,
        setup=("module load cuda/12.8", 'source "$HOME/venvs/tuning/bin/activate"'),
    ),
)  # fmt: skip
APPTAINER = (
    replace(job(), folders=("/data/tuning", "/data/my cache")),
    Resources(gres="gpu:1", container="/images/tuning.sif", mounts=("/data/pools:/pools:ro",)),
)  # fmt: skip
PYXIS = (
    replace(job(), folders=("/data/tuning",)),
    Resources(
        container="nvcr.io#nvidia/pytorch:25.01-py3", container_runtime="pyxis",
        mounts=("/scratch", "/data/pools:/pools"), python="/opt/venv/bin/python",
    ),
)  # fmt: skip
SCRIPTS = {
    "single": SINGLE, "array": ARRAY, "nodes": NODES, "apptainer": APPTAINER, "pyxis": PYXIS,
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_as_it_was_written_down(name):
    script = render(*SCRIPTS[name])
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("TUNING_GOLDEN") == "write":
        golden.write_text(script, encoding="utf-8")
    assert script == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_accepts_a_script(name):
    checked = subprocess.run(
        ["bash", "-n"], input=render(*SCRIPTS[name]), text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_environment_is_sorted_and_means_what_it_says(tmp_path):
    odd = "a b'c\"d$HOME`ls`\\%"
    script = render(job(ZEBRA="1", APE=odd), Resources())
    exports = [line for line in script.splitlines() if line.startswith("export ")]
    assert exports == sorted(exports)
    said = subprocess.run(
        ["bash", "-c", "\n".join(exports) + '\nprintf %s "$APE"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == odd


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (APPTAINER, "apptainer exec --nv --bind /data/tuning --bind '/data/my cache' "
                    "--bind /data/pools:/pools:ro /images/tuning.sif python3"),
        (PYXIS, "srun --container-image=nvcr.io#nvidia/pytorch:25.01-py3 "
                "--container-mounts=/data/tuning:/data/tuning,/scratch:/scratch,/data/pools:/pools "
                "/opt/venv/bin/python"),
    ],
    ids=["apptainer", "pyxis"],
)  # fmt: skip
def test_a_container_is_how_python_is_started(found, start):
    """The words that the job reads are those that were meant, whatever their letters."""
    lines = [line for line in render(*found).splitlines() if "TUNING_CONTAINER=" in line]
    said = subprocess.run(
        ["bash", "-c", lines[0] + '\nprintf %s "$TUNING_CONTAINER"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shlex.split(said.stdout) == shlex.split(start)


def test_the_stage_script_gets_the_tasks_file_whatever_its_name(tmp_path):
    """The last line, run with another bash in its place."""
    script = render(job(home=str(tmp_path / "a 'b' $c")), Resources())
    recorder = tmp_path / "bash"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    said = subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    stage, flag, tasks = said.stdout.splitlines()
    home = tmp_path / "a 'b' $c"
    assert stage == f"{home}/snapshots/0123456789abcdef/slurm/stage.sbatch"
    assert (flag, tasks) == ("--tasks", f"{home}/outputs/reports/trial/slurm/trial.1.sft.json")
    assert read_script(script)[1] == Path(tasks)


def test_a_set_up_line_that_fails_ends_the_job(tmp_path):
    script = render(job(), Resources(setup=("false", f"touch {tmp_path}/went-on")))
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
    assert done.returncode != 0
    assert not (tmp_path / "went-on").exists()


def test_every_array_is_held_requeued_and_ends_with_what_it_waits_for():
    found = options(*ARRAY)
    assert {"--hold", "--requeue", "--kill-on-invalid-dep=yes", "--open-mode=append"} <= set(found)
    assert "--signal=B:USR1@120" in found


def test_an_option_of_the_users_own_comes_last_and_so_wins():
    found = options(job(), Resources(options=("--cpus-per-task=3",)))
    assert found[-1] == "--cpus-per-task=3"


def plan() -> Plan:
    """A stage of every kind that a script is rendered for."""
    roles = ("pretrain", "base", "sft", "pt")
    stages = tuple(Stage(name=r, role=r, hash="0", script="x.py", phases=("train",))
                   for r in roles)  # fmt: skip
    return Plan(experiment="trial", stages=stages)


def test_no_secret_of_the_environment_is_in_a_script(monkeypatch, tmp_path):
    home = use(monkeypatch, tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "cluster.yaml"
    path.write_text("defaults: {setup: [source ~/.secrets], python: python}")
    found = Submission(plan(), Cluster(path=path), None).preview(1001)
    assert {array.kind for array, _ in found} == {"pretrain", "sft", "pft", "evaluation", "report"}
    for _, script in found:
        assert str(home) in script
        assert not [word for pair in SECRETS.items() for word in pair if word in script]
    assert list(home.iterdir()) == []


def test_the_script_of_an_array_asks_for_what_its_own_stages_can_use(monkeypatch, tmp_path):
    """A grid of both trainers: several nodes train together with the engine, one with TRL."""
    use(monkeypatch, tmp_path)
    (tmp_path / "cluster.yaml").write_text("defaults: {gres: 'gpu:1'}\n")
    stages = tuple(
        Stage(name=trainer, role="sft", hash="0", script="x.py", phases=("train",),
              joinable=trainer == "engine") for trainer in ("trl", "engine")
    )  # fmt: skip
    cluster = Cluster({"processes": 2, "nodes": 3}, {}, tmp_path / "cluster.yaml")
    made = Submission(Plan(experiment="trial", stages=stages), cluster, None).preview(1001)
    scripts = {array.stages[0]: (array.token, script) for array, script in made}
    assert [array.stages for array, _ in made] == [["trl"], ["engine"], ["report"]]
    token, script = scripts["trl"]
    assert token == "trial.1.sft-1"
    assert "export TUNING_PROCESSES=2\n" in script and "#SBATCH --nodes=1\n" in script
    token, script = scripts["engine"]
    assert token == "trial.1.sft-2"
    assert "export TUNING_PROCESSES=2\n" in script and "#SBATCH --nodes=3\n" in script


def test_a_preview_names_what_jobs_run_with(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path)
    path = tmp_path / "cluster.yaml"
    path.write_text("defaults: {python: /opt/python}\nstages: {sft: {offline: false}}")
    found = {a.kind: s for a, s in Submission(plan(), Cluster(path=path), None).preview(1001)}
    assert "export TUNING_PYTHON=/opt/python\n" in found["pft"]
    assert "export HF_HUB_OFFLINE=1\n" in found["pft"]
    assert "HF_HUB_OFFLINE" not in found["sft"]


def test_in_a_container_the_job_itself_runs_with_the_python_that_submits(monkeypatch, tmp_path):
    """So its supervisor has SLURM's commands; the report, which needs them, has no container."""
    home = use(monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "no-cache"))
    path = tmp_path / "cluster.yaml"
    path.write_text("defaults: {python: /opt/python, container: a.sif}\n")
    found = {a.kind: s for a, s in Submission(plan(), Cluster(path=path), None).preview(1001)}
    assert f"export TUNING_PYTHON={sys.executable}\n" in found["sft"]
    assert f"'apptainer exec --nv --bind {home} a.sif /opt/python'\n" in found["sft"]
    assert f"export TUNING_PYTHON={sys.executable}\n" in found["report"]
    assert "CONTAINER" not in found["report"]


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGUSR1, STOPPED_IN_SETUP), (signal.SIGTERM, ENDED_IN_SETUP)]
)
def test_a_signal_during_the_set_up_lines_is_answered_in_one_line(tmp_path, number, words):
    script = render(job(), Resources(setup=(f"touch {tmp_path}/began", "sleep 1", "false")))
    with subprocess.Popen(["bash", "-c", script], stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        running.send_signal(number)
        _, said = running.communicate(timeout=20)
    assert (running.returncode, said) == (1, f"error: {words}\n")
