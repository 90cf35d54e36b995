"""However a training is spread over processes, it is the training of one process: the same losses
and the same parameters, within rounding, after several steps of AdamW with clipping.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.conftest import environment
from tests.engine import small

PROGRAM = Path(small.__file__)
ROOT = PROGRAM.parents[2]
CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ddp": {"parallel": "ddp"},
        "zero1": {"parallel": "zero1"},
        "fsdp2": {"parallel": "fsdp2"},
        "fsdp2_one_row": {"parallel": "fsdp2", "batch_size": 8},
        "ddp_recomputed": {"parallel": "ddp", "gradient_checkpointing": True},
        "fsdp2_recomputed": {"parallel": "fsdp2", "gradient_checkpointing": True},
        "fsdp2_packed": {"parallel": "fsdp2", "packed": True},
        "ddp_packed": {"parallel": "ddp", "packed": True},
        "moe_no_tokens": {"shape": "moe", "packed": True, "batch_size": 1},
        "fsdp2_no_tokens": {"parallel": "fsdp2", "packed": True, "batch_size": 1},
        "ddp_no_tokens": {"parallel": "ddp", "packed": True, "batch_size": 1},
        "sep2": {"sep_size": 2},
        "sep2_ddp": {"sep_size": 2, "parallel": "ddp", "shape": "gqa"},
        "sep2_packed": {"sep_size": 2, "packed": True},
        "sep2_recomputed": {"sep_size": 2, "gradient_checkpointing": True},
        "moe_ddp": {"parallel": "ddp", "shape": "moe"},
        "moe_sep2": {"sep_size": 2, "shape": "moe"},
        "moe_sep2_zero1": {"sep_size": 2, "shape": "moe", "parallel": "zero1"},
        "moe_sep2_packed": {"sep_size": 2, "shape": "moe", "packed": True},
        "osft": {"parallel": "fsdp2", "ratio": 0.25},
    },
    4: {
        "sep4_gqa": {"sep_size": 4, "shape": "gqa"},
        "dp2_sep2": {"sep_size": 2, "shape": "gqa"},
        "dp2_sep2_packed": {"sep_size": 2, "packed": True},
        "moe_fsdp2": {"shape": "moe"},
        "hsdp": {"parallel": "hsdp", "a_node": 2},
        "hsdp_packed": {"parallel": "hsdp", "a_node": 2, "packed": True},
        "hsdp_one_node": {"parallel": "hsdp", "a_node": 4},
        "moe_dp2_sep2_no_tokens": {
            "shape": "moe",
            "sep_size": 2,
            "packed": True,
            "batch_size": 1,
        },
        "moe_sep4": {"sep_size": 4, "shape": "moe"},
        "moe_dp2_sep2": {"sep_size": 2, "shape": "moe"},
        "moe_dp2_sep2_ddp": {"sep_size": 2, "shape": "moe", "parallel": "ddp"},
        "moe_dp2_sep2_zero1": {"sep_size": 2, "shape": "moe", "parallel": "zero1"},
    },
}
HOW = ("parallel", "sep_size", "gradient_checkpointing", "a_node")
"""What the one process does without."""
NAMES = [(world, name) for world, cases in CASES.items() for name in cases]


def pythonpath(home: Path) -> dict[str, str]:
    """The environment of a program that imports tests."""
    return environment(home) | {"PYTHONPATH": str(ROOT)}


def together(world: int, out: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Run cases in `world` processes."""
    command = (str(PROGRAM), str(out), json.dumps(cases))
    code, errors = warm.run_together(world, command, pythonpath(out), ROOT, timeout=600)
    assert code == 0, errors[-6000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Any]:
    """What each case left, by the number of processes and its name."""
    out = tmp_path_factory.mktemp("parallel")
    for world, cases in CASES.items():
        together(world, out, cases)
    return {(world, name): torch.load(out / f"{name}.pt") for world, name in NAMES}


def alone(case: dict[str, Any], directory: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The same training by one process, of the same rows where experts are balanced over them."""
    plain = {k: v for k, v in case.items() if k not in HOW}
    weights, metrics, _ = small.train(directory, **plain)
    return weights, metrics


@pytest.mark.parametrize(("world", "name"), NAMES, ids=[f"{w}-{n}" for w, n in NAMES])
def test_many_train_what_one_does(results, world: int, name: str, tmp_path: Path) -> None:
    weights, metrics = alone(CASES[world][name], tmp_path)
    found = results[world, name]
    assert len(found["metrics"]) == len(metrics) == 5
    assert all(line["grad_norm"] > small.CONFIG.grad_clip_value for line in metrics)
    for here, there in zip(metrics, found["metrics"], strict=True):
        for key in ("loss", "grad_norm", "router_aux_loss"):
            assert there.get(key) == pytest.approx(here.get(key), abs=1e-5), key
        assert there["loss_tokens"] == here["loss_tokens"]
    assert found["weights"].keys() == weights.keys()
    for key, value in weights.items():
        worst = (found["weights"][key] - value).abs().max().item()
        assert worst <= 1e-5, (key, worst)


def test_processes_train_outside_of_what_osft_keeps(results) -> None:
    before = small.model.build(small.SHAPE, seed=0, eos_token_id=1, pad_token_id=0).state_dict()
    assert small.outside(before, results[2, "osft"]["weights"], 0.25)
