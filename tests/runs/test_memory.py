"""What is known of the memory of the machine and of processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tuning.runs.memory import family, host_memory, oom_kills, peak_resident, resident

pytestmark = pytest.mark.unit


def test_a_job_has_what_it_was_given():
    machine = host_memory({})
    assert 0 < machine < 1 << 50
    assert host_memory({"SLURM_MEM_PER_NODE": "100"}) == 100 << 20
    per_cpu = {"SLURM_MEM_PER_CPU": "50", "SLURM_CPUS_ON_NODE": "4"}
    assert host_memory(per_cpu) == 200 << 20
    assert host_memory({"SLURM_MEM_PER_NODE": "0"}) == machine
    assert host_memory({"SLURM_MEM_PER_CPU": "50"}) == machine


def test_a_process_has_memory_and_descendants():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        while len(family(process.pid)) < 2:
            pass
        assert all(resident(pid) for pid in family(process.pid))
        assert process.pid in family(os.getpid())
        process.communicate(b"\n")
    assert resident(process.pid) == 0
    assert peak_resident() >= resident(os.getpid()) * 0.5


def test_kills_for_memory_are_counted():
    assert oom_kills() >= 0
