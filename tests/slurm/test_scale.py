"""Many stages in few calls, and one stage on several nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import Site, wait_for
from tests.slurm.plans import trivial
from tuning.config import CHECKOUT
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.submission import Submission


def test_two_hundred_stages_are_few_calls(
    make_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = make_site()
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)
    plan = trivial(tmp_path, 200)
    submit = Submission(plan, Cluster(), Slurm())
    assert len(submit.run().new) == 200
    assert user.sbatch_calls == 3
    user.wait_idle(400)
    _start_lost_ones_again(user, submit)
    calls = user.sbatch_calls
    assert {row["state"] for row in user.status("many-200").values()} == {"done"}
    assert len(user.status("many-200")) == 200
    outcome = submit.run()
    assert (outcome.new, outcome.queued) == ({}, {})
    assert user.sbatch_calls == calls


def _start_lost_ones_again(user: Site, submit: Submission) -> None:
    """On one machine, two slurmd now and then lose a script before it starts: the job fails, and
    only that stage is submitted again.
    """
    failed = [name for name, row in user.status("many-200").items() if row["state"] != "done"]
    assert len(failed) <= 3
    if failed:
        assert sorted(submit.run().new) == sorted(failed)
        user.wait_idle(60)


SHORT = ("--model", "tiny", "--max_steps", "60", "--warmup_steps", "5", "--save_every_steps", "10")


def test_pretraining_on_two_nodes_is_pretraining_by_two_processes(
    make_site: Callable[..., Site],
) -> None:
    script = CHECKOUT / "slurm/pretrain.sh"
    here = make_site(name="here", variables={"TUNING_PROCESSES": "2"})
    here.run("bash", script, *SHORT)
    user = make_site(name="nodes")
    job = user.by_hand("--nodes", "2", "--cpus-per-task", "1", script, *SHORT)
    progress = user.home / "outputs/jobs" / job / "progress.json"
    wait_for(
        lambda: progress.exists() and json.loads(progress.read_text())["at"] >= 15, 120, user.queue
    )
    user.cluster.run("scancel", "--signal=USR1", "--batch", job)
    wait_for(lambda: "Restarts=1" in user.cluster.run("scontrol", "show", "job", job), 60)
    wait_for(lambda: user.state(job) == "COMPLETED", 180, user.queue)
    one, two = (next(site.home.glob("models/tiny*")) for site in (here, user))
    assert one.name == two.name
    assert json.loads((two / "result.json").read_text())["processes"] == 2
    weights = "model/model.safetensors"
    assert (one / weights).read_bytes() == (two / weights).read_bytes()
    losses = [
        [(line["step"], line["loss"]) for line in map(json.loads, lines.splitlines())]
        for lines in ((path / "metrics.jsonl").read_text() for path in (one, two))
    ]
    assert losses[0] == losses[1]
