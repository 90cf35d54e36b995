"""dpo, kto and grpo, each from the base, from an SFT run and from a sweetspot, through the command
line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import check, copy_home, run_entry
from tuning.runs.rundir import RunDirectory

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math")
ALL = ("--do_training", "--do_inference", "--do_evaluation")


@pytest.fixture(scope="module")
def with_sft(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two SFT runs: plain, and with a sweetspot."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("methods") / "home")
    check(run_entry(home, "run_sft.py", *DATA, "--train_size", 48, *ALL))
    rules = ("--perplexity_thresholds", 5.0)
    check(run_entry(home, "run_sft.py", *DATA, "--train_size", 96, *rules, "--do_training"))
    return home


def sweetspot_run(home: Path) -> str:
    """The run that has a sweetspot."""
    (checkpoint,) = home.glob("models/*/checkpoint-sweetspot-5.0")
    return checkpoint.parent.name


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
@pytest.mark.parametrize("start", ["base", "sft", "sweetspot"])
def test_every_method_starts_from_everything(with_sft: Path, method: str, start: str) -> None:
    suffix = "" if method == "dpo" else f"_{method}"
    where, name = {
        "base": (("--train_size", 24), f"tiny_pt-arith-24{suffix}"),
        "sft": (
            ("--train_size", 24, "--sft_train_size", 48),
            f"tiny_sft-arith-48_pt-arith-24{suffix}",
        ),
        "sweetspot": (
            ("--parent_run", sweetspot_run(with_sft), "--sweetspot", "ppl-5.0",
             "--total_data", 112),
            f"tiny_sweetspot-ppl-5.0_{method}-arith-*",
        ),
    }[start]  # fmt: skip
    check(run_entry(with_sft, "run_dpo.py", *DATA, "--pft_method", method, *where, *ALL))
    (path,) = with_sft.glob(f"models/{name}")
    run = RunDirectory(path)
    assert run.done("train")
    assert run.config is not None
    assert run.config["artifact"] == ("full" if method == "grpo" else "adapter")
    assert run.result["data_used"] == run.result["train_size"]
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert len(losses) == run.result["global_step"] > 0
    scores = json.loads((with_sft / "outputs/math" / path.name / "scores.json").read_text())
    assert scores["prompts"] == 8
    assert len(scores["correct"]) == 8


def test_a_missing_parent_is_named_with_the_command_that_makes_it(with_sft: Path) -> None:
    refused = check(
        run_entry(
            with_sft, "run_dpo.py", *DATA, "--train_size", 24, "--sft_train_size", 64,
            "--do_training",
        ),
        2,
    )  # fmt: skip
    assert "python tuning/run_sft.py --model tiny" in refused.stderr
    assert "--train_size 64 --do_training" in refused.stderr


def test_the_frozen_parent_is_not_saved_with_a_fork(with_sft: Path) -> None:
    check(
        run_entry(
            with_sft, "run_dpo.py", *DATA, "--train_size", 16, "--sft_train_size", 48,
            "--do_training",
        )
    )  # fmt: skip
    model = with_sft / "models/tiny_sft-arith-48_pt-arith-16/model"
    assert not [path for path in model.iterdir() if path.is_dir()]
    assert not list(model.parent.glob("checkpoint-*"))
