"""Where a process stands among the nodes that train together, and how its processes are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuning.config import CHECKOUT
from tuning.launchers import torchrun
from tuning.launchers.torchrun import Node, command, on_all_nodes, this_node
from tuning.runs.errors import UserError

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
    assert found == Node(nodes=1, rank=0, address="127.0.0.1", port=20000, processes=1)
    assert not found.joined


def test_by_hand_every_node_is_told_where_it_stands():
    found = this_node(BY_HAND)
    assert found == Node(nodes=2, rank=1, address="10.0.0.7", port=29500, processes=4)
    assert found.joined


def test_slurm_says_where_a_node_stands(hosts):
    found = this_node(BY_SLURM)
    assert found == Node(nodes=2, rank=1, address="n1", port=23456, processes=4)


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


def test_jobs_side_by_side_on_a_node_have_ports_of_their_own():
    ports = {this_node({"SLURM_JOB_ID": str(number)}).port for number in range(9990, 10010)}
    assert len(ports) == 20
    assert all(20000 <= port < 30000 for port in ports)


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
    words = command(this_node(BY_HAND), ["run_pretrain.py", "--model", "tiny"])
    assert words == [
        sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes=2", "--node_rank=1",
        "--nproc_per_node=4", "--master_addr=10.0.0.7", "--master_port=29500",
        "run_pretrain.py", "--model", "tiny",
    ]  # fmt: skip


def test_srun_starts_torchrun_on_every_node(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    words = on_all_nodes(this_node(BY_HAND), ["run_pretrain.py", "--model", "tiny"])
    assert words[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=6"} <= set(words)
    assert "--kill-on-bad-exit=1" in words
    start = words.index(sys.executable)
    assert words[start:] == [
        sys.executable, "-P", "-m", "tuning.launchers.torchrun",
        "run_pretrain.py", "--model", "tiny",
    ]  # fmt: skip


def test_it_becomes_torchrun(monkeypatch):
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append([path, *words]))
    monkeypatch.setattr(sys, "argv", ["torchrun", "run_pretrain.py", "--model", "tiny"])
    torchrun.main()
    assert became[0][:5] == [sys.executable, sys.executable, "-P", "-m", "torch.distributed.run"]
    assert became[0][-3:] == ["run_pretrain.py", "--model", "tiny"]


def test_a_wrong_variable_ends_the_command_with_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "tuning.launchers.torchrun", "x.py"], cwd=CHECKOUT,
        env=os.environ | {"NUM_NODES": "many"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: NUM_NODES is 'many'; it must be a whole number.\n"
