"""A stage in a container: its supervisor is outside, where SLURM's commands are, and requeues it.

No container can be had on this machine. `apptainer` and the part of `srun` that pyxis adds are
stand-ins: they take the options off, hide SLURM's commands, and run the rest as a child of theirs
that gets no signal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import Site, wait_for
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.resources import Cluster, for_kinds
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan, Stage

APPTAINER = """#!/bin/sh
shift
while [ "${1#--}" != "$1" ]; do
    if [ "$1" = --bind ]; then told="$told $2"; shift; fi
    shift
done
image=$1; shift
command -v "$1" > /dev/null || exit 1
TOLD="$image$told" PATH=/nowhere "$@"
exit $?
"""
SRUN = """#!/bin/bash
for word; do
    case $word in
        --container-image=*) image=${word#*=} ;;
        --container-mounts=*) mounts=${word#*=} ;;
        *) words+=("$word") ;;
    esac
done
TOLD="$image $mounts" /usr/bin/srun "${words[@]}"
"""
STAGE = """
import os, sys, time
from pathlib import Path
from tuning import config as site
from tuning.plan import read_stage
from tuning.runs import interrupt
from tuning.runs.rundir import Identity, claim
interrupt.install()
stage = read_stage(Path(sys.argv[sys.argv.index("--stage") + 1]))
told = Path(__file__).with_name(stage.name)
with told.open("a") as file:
    print(os.environ["TOLD"], file=file)
if len(told.read_text().splitlines()) == 1:
    until = time.monotonic() + 60
    while time.monotonic() < until and not interrupt.asked_to_stop():
        time.sleep(0.1)
    sys.exit(75)
identity = Identity(run_name=stage.name, kind="x", hash=stage.hash, hashed={}, settings={})
with claim(site.models_dir(), identity) as directory, directory.phase("train"):
    pass
"""


def test_a_stage_in_a_container_is_asked_to_save_and_requeued(
    make_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = make_site()
    for name, text in (("apptainer", APPTAINER), ("srun", SRUN)):
        (user.bin / name).write_text(text)
        (user.bin / name).chmod(0o755)
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "no-cache"))
    (tmp_path / "stage.py").write_text(STAGE)
    stages = tuple(
        Stage(name=name, role=role, hash=digit * 64, phases=("train",),
              script=str(tmp_path / "stage.py"))
        for name, role, digit in (("boxed", "sft", "0"), ("stepped", "pt", "1"))
    )  # fmt: skip
    python = user.environment["PYTHON"]
    words = ["sft:container=a.sif", "pft:container=r#b", "pft:container_runtime=pyxis",
             f"sft:python={python}", f"pft:python={python}", "sft:mounts=/data"]  # fmt: skip
    Submission(
        Plan(experiment="boxes", stages=stages), Cluster(kinds=for_kinds(words)), Slurm()
    ).run()
    wait_for(lambda: all((tmp_path / s.name).exists() for s in stages), 60, user.queue)
    for stage in stages:
        job = user.status("boxes")[stage.name]["job"]
        user.cluster.run("scancel", "--signal=USR1", "--batch", job)
    user.wait_idle(90)
    assert {row["state"] for row in user.status("boxes").values()} == {"done"}
    assert (tmp_path / "boxed").read_text().splitlines() == [f"a.sif {user.home} /data"] * 2
    assert (tmp_path / "stepped").read_text().splitlines() == [f"r#b {user.home}:{user.home}"] * 2
