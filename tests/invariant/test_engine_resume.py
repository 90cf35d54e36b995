"""A training of the engine that was stopped or killed, also during a save, ends as one that was
not: bit for bit with the same processes, within rounding with others.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.engine import small
from tests.invariant.test_parallel import pythonpath, together
from tuning.runs import manifest

TOGETHER: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "fsdp2": {"shape": "dropout"},
        "zero1": {"shape": "dropout", "parallel": "zero1"},
        "ddp": {"shape": "dropout", "parallel": "ddp", "packed": True},
        "moe": {"shape": "moe", "sep_size": 2},
        "moe_ddp": {"shape": "moe", "sep_size": 2, "parallel": "ddp"},
    },
    4: {
        "moe_dp2_sep2": {"shape": "moe", "sep_size": 2},
        "hsdp": {"shape": "dropout", "parallel": "hsdp", "a_node": 2},
    },
}
"""Cases of processes that stop and go on themselves."""
ELSEWHERE: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "fsdp2": {"parallel": "fsdp2"},
        "zero1": {"parallel": "zero1"},
        "moe": {"shape": "moe", "sep_size": 2},
    },
    4: {
        "moe_dp2_sep2": {"shape": "moe", "sep_size": 2},
        "hsdp": {"parallel": "hsdp", "a_node": 2},
    },
}
"""Cases that others go on with."""


def plain(case: dict[str, Any]) -> dict[str, Any]:
    """A case for one process."""
    return {key: value for key, value in case.items() if key == "shape"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of all cases left: CASE.PART.pt, and the checkpoints of CASE.down."""
    out = tmp_path_factory.mktemp("resumed")
    for world in TOGETHER:
        steps: dict[str, dict[str, Any]] = {}
        for name, case in TOGETHER[world].items():
            folder = str(out / f"{name}.run")
            steps[f"{name}.straight"] = dict(case)
            steps[f"{name}.stopped"] = case | {"directory": folder, "stop_after": 3}
            steps[f"{name}.continued"] = case | {"directory": folder}
        for name, case in ELSEWHERE[world].items():
            small.train(out / f"{name}.up", stop_after=2, **plain(case))
            steps[f"{name}.begun"] = case | {
                "directory": str(out / f"{name}.down"),
                "stop_after": 2,
            }
            steps[f"{name}.ended"] = case | {"directory": str(out / f"{name}.up")}
        together(world, out, steps)
    return out


@pytest.mark.parametrize("name", [n for cases in TOGETHER.values() for n in cases])
def test_processes_that_stop_go_on_bit_for_bit(out: Path, name: str) -> None:
    straight, stopped, continued = (
        torch.load(out / f"{name}.{part}.pt") for part in ("straight", "stopped", "continued")
    )
    assert small.same(straight["weights"], continued["weights"])
    losses = [line["loss"] for line in stopped["metrics"] + continued["metrics"]]
    assert losses == [line["loss"] for line in straight["metrics"]]
    assert continued["metrics"][-1]["samples"] == straight["metrics"][-1]["samples"]


@pytest.mark.parametrize("packed", [False, True], ids=["blocks", "packed"])
def test_alone_it_goes_on_bit_for_bit(tmp_path: Path, packed: bool) -> None:
    case = {"shape": "dropout", "packed": packed, "max_steps": 9, "save_every_steps": 2}
    straight, all_metrics, _ = small.train(tmp_path / "straight", **case)
    _, before, _ = small.train(tmp_path / "run", stop_after=5, **case)
    torch.rand(3)
    weights, after, _ = small.train(tmp_path / "run", **case)
    assert small.same(straight, weights)
    timeless = ("step", "loss", "lr", "grad_norm", "tokens", "samples", "epoch")
    assert [[m[k] for k in timeless] for m in before + after] == [
        [m[k] for k in timeless] for m in all_metrics
    ]
    assert after[0]["seconds"] > before[-1]["seconds"]


@pytest.mark.parametrize(
    ("name", "case"), [c for cases in ELSEWHERE.values() for c in cases.items()]
)
def test_other_numbers_of_processes_go_on(
    out: Path, tmp_path: Path, name: str, case: dict[str, Any]
) -> None:
    """Begun by several, ended by one, and the other way round: within 1e-5 after five steps."""
    straight, _, _ = small.train(tmp_path / "straight", **plain(case))
    down, metrics, _ = small.train(out / f"{name}.down", **plain(case))
    assert [line["step"] for line in metrics] == [3, 4, 5]
    assert small.furthest(straight, down) <= 1e-5
    ended = torch.load(out / f"{name}.ended.pt")
    assert [line["step"] for line in ended["metrics"]] == [3, 4, 5]
    assert small.furthest(straight, ended["weights"]) <= 1e-5


LONG = {"shape": "dropout", "max_steps": 100, "save_every_steps": 1, "warmup_steps": 10}


def test_a_kill_at_any_moment_loses_steps_since_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """A checkpoint after every step, so that kills strike while one is written."""
    straight, _, _ = small.train(tmp_path / "straight", **LONG)
    run = tmp_path / "run"
    cases = json.dumps({"killed": LONG | {"directory": str(run)}})
    command = [str(small.__file__), str(tmp_path), cases]
    cut = 0
    for further in (3, 20, 31):
        begun = newest(run)
        process = warm.start(command, pythonpath(tmp_path), tmp_path)
        deadline = time.monotonic() + 120
        while newest(run) < begun + further or not list(run.glob(".checkpoint-*.tmp")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
        cut += bool(list(run.glob(".checkpoint-*.tmp")))
    assert cut, "no kill struck while a checkpoint was written"
    weights, metrics, _ = small.train(run, **LONG)
    assert 0 < len(metrics) < 100
    assert small.same(straight, weights)
    assert newest(run) == 100 and not list(run.glob(".checkpoint-*.tmp"))


def newest(run: Path) -> int:
    """The step of the newest whole checkpoint."""
    found = manifest.newest_whole(run)
    return int(found.name.rpartition("-")[2]) if found else 0
