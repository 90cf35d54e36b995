"""The placement of a stage, and how its processes are started and stopped."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tuning.config import CHECKOUT, PACKAGE
from tuning.launchers.processes import (
    MODULE,
    Placement,
    _tunes_first,
    command,
    killed_by,
    signals_reach,
    this_job,
    this_node,
)
from tuning.plan import Stage, write_stage
from tuning.runs.errors import UserError
from tuning.runs.outcome import Outcome

pytestmark = pytest.mark.unit

BY_HAND = {
    "NUM_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500",
    "TUNING_PROCESSES": "4",
}  # fmt: skip
BY_SLURM = {
    "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "n[1-2]", "TUNING_PROCESSES": "4",
}  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scontrol that knows two hosts."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'n1\\nn2\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_without_a_word_a_process_is_alone():
    found = this_node({})
    assert found == Placement(nodes=1, node=0, address="127.0.0.1", port=None, processes=1)
    assert not found.joined


def test_by_hand_every_node_is_told_where_it_stands():
    found = this_node(BY_HAND)
    assert found == Placement(nodes=2, node=1, address="10.0.0.7", port=29500, processes=4)
    assert found.joined


def test_slurm_says_where_a_node_stands(hosts):
    found = this_node(BY_SLURM)
    assert found == Placement(nodes=2, node=1, address="n1", port=23456, processes=4)


def test_what_is_set_by_hand_beats_slurm(hosts):
    assert this_node(BY_SLURM | BY_HAND) == this_node(BY_HAND)
    assert this_node(BY_SLURM | {"MASTER_ADDR": "10.0.0.7"}).address == "10.0.0.7"
    assert this_node(BY_SLURM | {"MASTER_PORT": "29500"}).port == 29500


def test_an_empty_variable_says_nothing(hosts):
    empty = dict.fromkeys(("NUM_NODES", "NODE_RANK", "MASTER_PORT"), "")
    assert this_node(BY_SLURM | empty) == this_node(BY_SLURM)


def test_an_empty_address_is_no_address(hosts):
    """With loopback for an address, the nodes would wait for each other until they time out."""
    assert this_node(BY_SLURM | {"MASTER_ADDR": ""}).address == "n1"


def test_jobs_side_by_side_on_nodes_have_ports_of_their_own(hosts):
    ports = {
        this_node(BY_SLURM | {"SLURM_JOB_ID": str(number)}).port for number in range(9990, 10010)
    }
    assert len(ports) == 20
    assert all(20000 <= port < 30000 for port in ports)


def test_on_one_node_torchrun_finds_a_free_port():
    placement = this_node({"SLURM_JOB_ID": "7", "TUNING_PROCESSES": "2"})
    assert placement.port is None
    assert command(["x.py"], placement)[4:] == [
        "--standalone", "--local_addr=127.0.0.1", "--nproc_per_node=2", "x.py"
    ]  # fmt: skip
    assert this_node({"MASTER_PORT": "29500"}).port == 29500


def test_one_process_is_started_without_torchrun():
    assert command(["x.py", "--y"], Placement()) == [sys.executable, "x.py", "--y"]


def test_in_a_container_its_python_starts_the_stage(monkeypatch):
    monkeypatch.setenv("TUNING_CONTAINER", "apptainer exec --bind '/a b' image python3")
    start = ["apptainer", "exec", "--bind", "/a b", "image", "python3"]
    assert command(["x.py", "--y"], Placement()) == [*start, "x.py", "--y"]
    joined = command(["x.py"], Placement(processes=2))
    assert joined[:9] == [*start, "-P", "-m", "tuning.launchers.processes"]
    assert "--nproc_per_node=2" in joined and joined[-1] == "x.py"
    nodes = Placement(nodes=2, node=None, address="n7")
    found = command(["x.py"], nodes)
    assert found[0] == "srun" and found[found.index("apptainer") :][: len(start)] == start
    assert nodes.environment()["MASTER_ADDR"] == "n7"
    assert not signals_reach(Placement())


def test_a_container_of_srun_is_an_option_of_the_step(monkeypatch):
    monkeypatch.setenv("TUNING_CONTAINER", "srun --container-image=a#b --container-mounts=/c:/c py")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    for placement, rest in ((Placement(), ["x.py"]), (Placement(nodes=2, node=None), None)):
        found = command(["x.py"], placement)
        assert found.count("srun") == 1 and found[0] == "srun"
        assert f"--ntasks={placement.nodes}" in found and "--cpus-per-task=3" in found
        at = found.index("--container-image=a#b")
        assert found[at + 1 : at + 3] == ["--container-mounts=/c:/c", "py"]
        assert rest is None or found[at + 3 :] == rest


def test_processes_share_the_cores_and_see_their_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    placement = Placement(processes=3, devices=("2", "5"))
    assert placement.environment(8) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "2,5"}
    assert Placement(processes=3).environment(2) == {"OMP_NUM_THREADS": "1"}
    assert Placement().environment() == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Placement().environment(8) == {}


@pytest.mark.parametrize("nodes", ["1", "2"])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_stage_is_joined_where_there_is_more_than_one_process(nodes, processes):
    found = this_node(BY_HAND | {"NUM_NODES": nodes, "TUNING_PROCESSES": processes})
    assert found.joined is ((nodes, processes) != ("1", "1"))


@pytest.mark.parametrize("name", sorted(BY_HAND.keys() - {"MASTER_ADDR"}))
@pytest.mark.parametrize("value", ["two", "-1", "1.5", "2 3"])
def test_a_variable_that_is_no_number_is_named(name, value):
    with pytest.raises(UserError) as error:
        this_node(BY_HAND | {name: value})
    assert str(error.value) == f"{name} is '{value}'; it must be a whole number."


@pytest.mark.parametrize("name", ["SLURM_NNODES", "SLURM_NODEID"])
def test_a_variable_of_slurm_that_is_no_number_is_named(name, hosts):
    with pytest.raises(UserError, match=f"{name} is 'x'; it must be a whole number."):
        this_node(BY_SLURM | {name: "x"})


def test_several_nodes_by_hand_need_the_address_of_the_first():
    with pytest.raises(UserError, match="MASTER_ADDR must name the first node"):
        this_node({"NUM_NODES": "2"})


def test_torchrun_starts_the_processes_of_a_node():
    words = command(["run_pretrain.py", "--model", "tiny"], this_node(BY_HAND))
    assert words == [
        sys.executable, "-P", "-m", MODULE, "--nnodes=2", "--node_rank=1",
        "--nproc_per_node=4", "--master_addr=10.0.0.7", "--master_port=29500",
        "run_pretrain.py", "--model", "tiny",
    ]  # fmt: skip


def test_srun_starts_torchrun_on_every_node(monkeypatch, hosts):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    words = command(["run_pretrain.py", "--model", "tiny"], this_job(BY_SLURM))
    assert words[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=6"} <= set(words)
    assert "--kill-on-bad-exit=1" in words
    start = words.index(sys.executable)
    assert words[start:] == [
        sys.executable,
        "-P",
        "-m",
        MODULE,
        "run_pretrain.py",
        "--model",
        "tiny",
    ]


def test_a_node_that_was_named_by_hand_starts_its_own_processes(hosts):
    assert this_job(BY_SLURM | BY_HAND) == this_node(BY_HAND)
    assert this_job({"SLURM_JOB_ID": "7", "TUNING_PROCESSES": "2"}).node == 0


def start(*words: str, **variables: str) -> subprocess.Popen[str]:
    """Start the module."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip


def test_a_wrong_variable_ends_the_command_with_one_line():
    process = start("x.py", NUM_NODES="many")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert errors == "error: NUM_NODES is 'many'; it must be a whole number.\n"


def test_without_a_script_it_says_how():
    process = start("--standalone")
    assert process.communicate(timeout=60)[1].startswith("error: name a script: python -m")
    assert process.returncode == 2


def test_only_one_module_reads_the_variables_of_torchrun():
    """Whoever asks for ranks asks tuning/runs/ranks.py."""
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {"runs/ranks.py"}


@pytest.mark.parametrize(
    ("codes", "code", "reason", "killed"),
    [
        ([1, -6], 1, "ValueError: no", None),
        ([-6, -15], None, "", -6),
        ([1, -9], 1, "RuntimeError: connection closed", -9),
        ([-15, -9], 75, "", None),
        ([1, -15], 1, "ValueError: no", None),
    ],
)
def test_a_recorded_reason_counts_over_an_abort_and_not_over_a_kill(codes, code, reason, killed):
    recorded = None if code is None else Outcome(code=code, reason=reason)
    assert killed_by(codes, recorded) == killed


def test_a_stage_of_several_processes_on_one_node_is_tuned_first(tmp_path):
    stage = Stage(name="a", role="pretrain", hash="h", phases=("train",), autotune={})
    write_stage(tmp_path / "a.json", stage)
    write_stage(tmp_path / "b.json", replace(stage, autotune=None))
    joined, words = ["--nproc_per_node=2"], ["run_pretrain.py", "--autotune"]
    planned = ["run_pretrain.py", "--stage", str(tmp_path / "a.json")]
    assert _tunes_first(joined, words) and _tunes_first(joined, planned)
    assert not _tunes_first(joined, ["run_pretrain.py", "--stage", str(tmp_path / "b.json")])
    assert not _tunes_first(joined, ["run_pretrain.py"])
    assert not _tunes_first(["--nproc_per_node=1"], words)
    assert not _tunes_first([*joined, "--nnodes=2"], words)
