"""What jobs used, from lines as sacct of SLURM 22.05 prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuning.launchers.slurm.client import ACCOUNTED, Slurm
from tuning.launchers.slurm.ledger import Array, Jobs
from tuning.launchers.slurm.usage import by_kind, seconds, size, update
from tuning.report.usage import usage

pytestmark = pytest.mark.unit

TRES = "billing=4,cpu=4,gres/gpu=2,mem=8000M,node=1"
LINES = f"""\
7_0|REQUEUED|3600|14400|02:00:00|{TRES}|
7_0.batch|CANCELLED|3600|14400|02:00:00|cpu=4,mem=8000M,node=1|2097152K
7_0|COMPLETED|1800|7200|00:30:00.500|{TRES}|
7_0.batch|COMPLETED|1800|7200|00:30:00.500|cpu=4,mem=8000M,node=1|4194304K
7_1|CANCELLED by 0|0|0|00:00:00||
7_2|RUNNING|600|2400|00:00:00|{TRES}|
9_0|COMPLETED|36|36|00:09.000|billing=1,cpu=1,mem=2000M,node=1|
9_0.batch|COMPLETED|36|36|00:09.000|cpu=1,mem=2000M,node=1|
11_0|COMPLETED|5|5|00:01.000|billing=1,cpu=1,mem=2000M,node=1|
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with arrays 7 (sft), 9 (pft) and 11 (the report); sacct says LINES."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sacct").write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\n"
                                    f"cat <<'END'\n{LINES}END\n")  # fmt: skip
    (commands / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    arrays = [
        Array(token=f"t.1.{kind}", kind=kind, stages=[], keys=[], number=number)
        for kind, number in (("sft", 7), ("pft", 9), ("report", 11))
    ]
    Jobs(tmp_path / "e").write([*arrays, Array(token="t.2.sft", kind="sft", stages=[], keys=[])])
    return tmp_path / "e"


def test_every_start_counts_and_efficiency_is_of_what_has_ended(folder, tmp_path):
    update(folder, Slurm())
    kinds = json.loads((folder / "usage.json").read_text())["kinds"]
    assert kinds["sft"] == {
        "starts": 3, "seconds": 6000, "core_seconds": 24000, "gpu_seconds": 12000,
        "cpu_seconds": 9000.5, "ended_core_seconds": 21600,
        "memory": 4 << 30, "memory_asked": 8000 << 20,
    }  # fmt: skip
    assert kinds["pft"]["memory"] == 0 and set(kinds) == {"sft", "pft"}
    asked = (tmp_path / "asked").read_text().split()
    assert asked[asked.index("-j") + 1] == "7,9" and "-D" in asked
    sft, pft, total = usage(folder)
    assert (sft.kind, sft.starts, sft.hours, sft.gpu_hours) == ("sft", "3", "1.67", "3.33")
    assert (sft.core_hours, sft.efficiency, sft.memory) == ("6.67", "42%", "4.00 GB of 7.81 GB")
    assert (pft.hours, pft.gpu_hours, pft.efficiency, pft.memory) == ("0.01", "–", "25%", "–")
    assert (total.kind, total.starts, total.memory) == ("all", "4", "–")


def test_without_accounting_there_is_nothing_and_what_was_known_stays(folder, monkeypatch):
    update(folder, Slurm())
    before = (folder / "usage.json").read_text()
    monkeypatch.setenv("PATH", "/nowhere")
    update(folder, Slurm())
    assert (folder / "usage.json").read_text() == before
    (folder / "usage.json").unlink()
    update(folder, Slurm())
    assert not (folder / "usage.json").exists() and usage(folder) == []


def test_what_was_never_submitted_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    update(tmp_path, Slurm())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("00:12.345", 12.345), ("02:03:04", 7384), ("1-02:03:04", 93784), ("", 0)],
)
def test_times(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1024K", 1 << 20), ("2.50G", 5 << 29), ("8000M", 8000 << 20), ("17", 17), ("", 0)],
)
def test_sizes(text, value):
    assert size(text) == value


def test_what_sacct_could_not_measure_counts_nothing():
    line = dict(zip(ACCOUNTED, ("7_0", "COMPLETED", "10", "20", "INVALID",
                                "cpu=2,gres/gpu=2K,mem=1.5G", ""), strict=True))  # fmt: skip
    found = by_kind([line, line | {"ElapsedRaw": "INVALID"}], {"7": "sft"})["sft"]
    assert (found.starts, found.cpu_seconds, found.gpu_seconds) == (1, 0.0, 20480)
