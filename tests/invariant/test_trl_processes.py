"""TRL in two processes gives what it gives in one, by DDP and by FSDP2: the same rows a step, the
same losses and ends, checkpoints that are whole; all written and reported once.

Losses and norms agree within 1e-5 (fp32): two processes add the same terms in another order, and no
run here has more than 20 steps in which AdamW could make more of that. What is sampled is the same.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.conftest import check, copy_home, environment, run_entry
from tuning.config import PACKAGE
from tuning.runs import manifest, memory
from tuning.runs.rundir import RunDirectory

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--do_training")
SFT = (
    "run_sft.py", *DATA, "--train_size", "65", "--num_train_epochs", "4", "--eval_steps", "10",
    "--micro_batch_size", "4", "--perplexity_thresholds", "4.7", "--early_stop", "false",
    "--save_steps", "2", "--learning_rate", "2e-3",
)  # fmt: skip
"""Its epochs end with a step of one row, of which one of two ranks has none."""
AFTER = ("--pft_method", "dpo", "--train_size", "17", "--micro_batch_size", "2")
COMMANDS = {
    "sft": SFT,
    "dpo": ("run_dpo.py", *DATA, *AFTER),
    "kto": ("run_dpo.py", *DATA, "--pft_method", "kto", "--train_size", "17",
            "--kl_batch_size", "4"),
    "grpo": ("run_dpo.py", *DATA, "--pft_method", "grpo", "--train_size", "16",
             "--learning_rate", "1e-3"),
}  # fmt: skip
SAME = ("loss", "grad_norm", "perplexity", "perplexity_sample_mean", "kl", "reward", "tokens")


@pytest.fixture(scope="module")
def homes(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of homes, one for each way of training."""
    return tmp_path_factory.mktemp("processes")


def trained(homes: Path, trained_home: Path, method: str, parallel: str = "") -> RunDirectory:
    """The run of a method in one process, or in two that are spread so; trained once."""
    home = homes / f"{method}-{parallel or 'alone'}"
    if not home.exists():
        copy_home(trained_home, home)
        script, *flags = COMMANDS[method]
        if not parallel:
            check(run_entry(home, script, *flags))
        else:
            words = [str(PACKAGE / script), *flags, "--parallel", parallel]
            code, errors = warm.run_together(2, words, environment(home), home.anchor, 300)
            assert code == 0, errors[-4000:]
            assert errors.count("training:   0%") == 1, "one rank shows progress"
    runs = (home / "models").glob("tiny_*")
    (path,) = (run for run in runs if ("_pt-" in run.name) == (method != "sft"))
    return RunDirectory(path)


@pytest.mark.parametrize(
    ("method", "parallel"),
    [*((method, "ddp") for method in COMMANDS), ("sft", "fsdp2"), ("grpo", "fsdp2")],
)
def test_two_processes_give_what_one_gives(
    homes: Path, trained_home: Path, method: str, parallel: str
) -> None:
    one, two = (trained(homes, trained_home, method, way) for way in ("", parallel))
    require_same(one, two)
    assert two.hash == one.hash and two.result["processes"] == 2
    assert close(weights(one.path / "model"), weights(two.path / "model"))


def require_same(one: RunDirectory, two: RunDirectory) -> None:
    """The metrics of both, line by line, and their results but times and processes."""
    assert len(one.metrics()) == len(two.metrics()), "each is logged once"
    for ours, theirs in zip(one.metrics(), two.metrics(), strict=True):
        assert (ours["step"], ours.keys()) == (theirs["step"], theirs.keys())
        for name in SAME:
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], abs=1e-5, rel=1e-5), name
    left_out = ("train_seconds", "processes", "perplexity", "base_perplexity")
    ours, theirs = ({k: v for k, v in r.result.items() if k not in left_out} for r in (one, two))
    assert theirs == ours


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether they have the same names, and numbers that differ by less than a step of AdamW."""
    assert one.keys() == two.keys()
    return max((one[k] - two[k]).abs().max().item() for k in one) < 1e-3


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_sweetspot_is_that_of_one_process(homes: Path, trained_home: Path, parallel: str) -> None:
    one, two = (trained(homes, trained_home, "sft", way) for way in ("", parallel))
    assert one.result["sweetspots"]["ppl-4.7"]["state"] == "reached"
    spots = [run.path / "checkpoint-sweetspot-4.7" for run in (one, two)]
    assert all(map(manifest.is_whole, spots))
    assert close(*map(weights, spots))
    told = [json.loads((spot / "sweetspot_metadata.json").read_text()) for spot in spots]
    assert told[0].pop("perplexity") == pytest.approx(told[1].pop("perplexity"), abs=1e-5)
    assert told[0] == told[1]


def test_preference_tuning_of_an_adapter_keeps_its_frozen_copy_apart_under_fsdp2(
    homes: Path, trained_home: Path
) -> None:
    found = []
    for parallel in ("", "fsdp2"):
        sft = trained(homes, trained_home, "sft", parallel)
        flags = [*DATA, *AFTER, "--parent_run", sft.name]
        if not parallel:
            check(run_entry(sft.path.parents[1], "run_dpo.py", *flags))
        else:
            words = [str(PACKAGE / "run_dpo.py"), *flags, "--parallel", parallel]
            home = sft.path.parents[1]
            code, errors = warm.run_together(2, words, environment(home), home.anchor, 300)
            assert code == 0, errors[-4000:]
        (path,) = sft.path.parent.glob(f"{sft.name}_pt-*")
        found.append(RunDirectory(path))
    require_same(*found)


STOPPED = """
import sys
from tuning import run_dpo
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted
from tuning.training.checkpoints import RunCallback

ends = RunCallback.on_step_end

def on_step_end(self, args, state, control, **more):
    interrupt.asked_to_stop = lambda: state.global_step >= 2
    ends(self, args, state, control, **more)

RunCallback.on_step_end = on_step_end
try:
    run_dpo.main(sys.argv[1:])
except Interrupted:
    print("stopped", file=sys.stderr)
"""
"""Preference tuning that both ranks are asked to stop after two steps."""


def test_all_weights_go_on_under_fsdp2_beside_a_reference_that_is_a_copy(
    trained_home: Path, tmp_path: Path
) -> None:
    """A checkpoint of sharded weights is whole; the reference of GRPO is sharded before them."""
    script, *flags = COMMANDS["grpo"]
    more = [*flags, "--effective_batch_size", "4", "--full", "--grpo_beta", "0.1"]
    homes = [copy_home(trained_home, tmp_path / name) for name in ("one", "two")]
    check(run_entry(homes[0], script, *more))
    (stopped := tmp_path / "stopped.py").write_text(STOPPED)
    for program in (stopped, PACKAGE / script):
        words = [str(program), *more, "--parallel", "fsdp2"]
        code, errors = warm.run_together(2, words, environment(homes[1]), homes[1].anchor, 300)
        assert code == 0, errors[-4000:]
        assert errors.count("stopped") == (2 if program is stopped else 0), errors[-4000:]
    one, two = (RunDirectory(next(home.glob("models/tiny_pt-*"))) for home in homes)
    assert [line["step"] for line in two.metrics() if "loss" in line] == [1, 2, 3, 4]
    assert any(line.get("kl") for line in two.metrics())
    require_same(one, two)
    assert close(weights(one.path / "model"), weights(two.path / "model"))


def test_processes_that_cannot_share_a_step_are_refused(tiny_home: Path) -> None:
    words = [str(PACKAGE / "run_sft.py"), *DATA, "--train_size", "8"]
    code, errors = warm.run_together(3, words, environment(tiny_home), tiny_home.anchor, 100)
    assert code == 2
    assert "error: effective_batch_size 16 cannot be shared by 3 processes: micro-batch x" in errors
    assert [path.name for path in (tiny_home / "models").iterdir()] == ["tiny"]


# as launchers have them


class Supervised:
    """A stage of two processes under its supervisor."""

    def __init__(self, home: Path, folder: Path, parallel: str) -> None:
        script, *flags = SFT
        self.home, self.record = home, folder / "record.json"
        words = [
            "-P", "-m", "tuning.launchers.supervisor", "--record", self.record,
            "--log", folder / "log.txt", "--joined", "--", sys.executable, "-P", "-m",
            "tuning.launchers.processes", "--standalone", "--local_addr=127.0.0.1",
            "--nproc_per_node=2", PACKAGE / script, *flags, "--parallel", parallel,
        ]  # fmt: skip
        where = environment(home) | {"PYTHONPATH": str(PACKAGE.parent)}
        self.process = warm.start([str(word) for word in words], where, home.anchor)

    def wait_for_a_checkpoint(self) -> None:
        """Until one more is whole."""
        before, deadline = self.saved(), time.monotonic() + 240
        while self.saved() == before:
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.02)

    def saved(self) -> int:
        """The step of the newest whole checkpoint."""
        found = [manifest.newest_whole(path) for path in self.home.glob("models/tiny_sft-*")]
        return max((int(path.name.rpartition("-")[2]) for path in found if path), default=0)

    def kill_second_rank(self) -> None:
        """End by SIGKILL the process beside the one that holds the run."""
        (lock,) = self.home.glob("models/tiny_sft-*/lock.json")
        first = int(json.loads(lock.read_text())["pid"])
        agent = warm.parent_of(first)
        beside = set(memory.family(agent)) - {agent, first}
        (second,) = (pid for pid in beside if warm.parent_of(pid) == agent)
        os.kill(second, signal.SIGKILL)

    def end(self) -> tuple[int, dict[str, Any]]:
        """The exit code, and the record."""
        return self.process.wait(240), json.loads(self.record.read_text())


@pytest.mark.parametrize(("before", "after"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_stopped_killed_and_spread_in_another_way_is_straight(
    homes: Path, trained_home: Path, tmp_path: Path, before: str, after: str
) -> None:
    """Stopped under one; goes on under the other, where a rank is killed; starts again and ends."""
    home = copy_home(trained_home, tmp_path / "home")
    first = Supervised(home, tmp_path, before)
    first.wait_for_a_checkpoint()
    first.process.send_signal(signal.SIGTERM)
    code, record = first.end()
    assert (code, record["state"]) == (75, "pending"), (tmp_path / "log.txt").read_text()[-4000:]
    second = Supervised(home, tmp_path, after)
    second.wait_for_a_checkpoint()
    second.kill_second_rank()
    code, record = second.end()
    assert (code, record["state"]) == (0, "done"), (tmp_path / "log.txt").read_text()[-4000:]
    assert record["attempts"] == 2, "the killed one was a failure, after which it was started again"
    (path,) = (home / "models").glob("tiny_*")
    require_same(trained(homes, trained_home, "sft"), RunDirectory(path))
    assert not manifest.checkpoints(path)
