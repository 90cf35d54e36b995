"""All weights trained with TRL: what is left is a whole model, and everything works from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import COLLECTIONS, check, copy_home, run_entry
from tests.engine import small
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted
from tuning.runs.rundir import RunDirectory
from tuning.training.config_training import PTRunConfig, SFTRunConfig, preference_config, sft_config
from tuning.training.parents import parent_of
from tuning.training.start import start_of

DATA: dict[str, Any] = {"model": "tiny", "dataset": "arith", "task": "math"}
FLAGS = ("--model", "tiny", "--dataset", "arith", "--task", "math")
LABEL = "ppl-5.0"
SFT: dict[str, Any] = {
    "full": True, "learning_rate": 2e-3, "perplexity_thresholds": (5.0,), "early_stop": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with an SFT run of all weights, evaluated, that has a sweetspot."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("full") / "home")
    check(
        run_entry(
            home, "run_sft.py", *FLAGS, "--train_size", 96, "--full", "--learning_rate", 2e-3,
            "--perplexity_thresholds", 5.0, "--early_stop", "false",
            "--do_training", "--do_inference", "--do_evaluation",
        )
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNING_HOME", str(home))
        patch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
        yield home


@pytest.fixture
def sft(home: Path) -> SFTRunConfig:
    return sft_config(**DATA, train_size=96, values=SFT)


def directory_of(home: Path, config: SFTRunConfig) -> RunDirectory:
    return RunDirectory(home / "models" / config.run_name)


def test_it_leaves_a_whole_model_of_another_name(home: Path, sft: SFTRunConfig) -> None:
    adapter = sft_config(**DATA, train_size=96, values={**SFT, "full": False})
    assert sft.run_name.startswith("tiny_sft-arith-96-") and sft.hash != adapter.hash
    run = directory_of(home, sft)
    assert run.config is not None and run.config["artifact"] == "full"
    base, tuned = (
        load_file(folder / "model/model.safetensors") for folder in (home / "models/tiny", run.path)
    )
    assert base.keys() == tuned.keys()
    assert not any(torch.equal(base[name], tuned[name]) for name in base)
    assert not list(run.path.glob("**/adapter_*"))
    scores = json.loads((home / "outputs/math" / run.name / "scores.json").read_text())
    assert scores["prompts"] == 8


def test_what_is_loaded_is_what_was_measured(home: Path, sft: SFTRunConfig) -> None:
    from tests.invariant.test_artifacts import perplexity

    run = directory_of(home, sft)
    spot = run.path / "checkpoint-sweetspot-5.0"
    metadata = json.loads((spot / "sweetspot_metadata.json").read_text())
    assert perplexity(home, run, spot) == pytest.approx(metadata["perplexity"], rel=1e-4)
    assert perplexity(home, run, None) == pytest.approx(run.result["perplexity"], rel=1e-4)
    assert run.result["perplexity"] < metadata["perplexity"] < run.result["base_perplexity"]


def test_resumed_is_straight(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuning.training import sft_training

    config = sft_config(**DATA, train_size=64, values={"full": True, "save_steps": 2})
    straight, resumed = (RunDirectory(tmp_path / name) for name in ("straight", "resumed"))
    sft_training.train(config, straight, [])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(interrupt, "asked_to_stop", lambda: len(resumed.metrics()) >= 3)
        sft_training.train(config, resumed, [])
    sft_training.train(config, resumed, [])
    found = [load_file(run.path / "model/model.safetensors") for run in (straight, resumed)]
    assert small.same(*found)


@pytest.mark.parametrize(
    ("method", "values"),
    [("dpo", {}), ("dpo", {"full": True}), ("kto", {"full": True}),
     ("grpo", {"full": True, "grpo_beta": 0.1})],
    ids=["dpo over it", "dpo of all", "kto of all", "grpo of all"],
)  # fmt: skip
def test_preference_tuning_forks_from_it(
    home: Path, sft: SFTRunConfig, tmp_path: Path, method: str, values: dict[str, Any]
) -> None:
    """The policy begins as the reference, and only the policy moves."""
    parent = parent_of(sft, sft.run_name, LABEL, 96)
    config = preference_config(
        **DATA, pft_method=method, train_size=None, parent=parent,
        values={"sft_loss_weight": 0.0, **values} if method == "dpo" else values,
    )  # fmt: skip
    run, start = RunDirectory(tmp_path / "run"), start_of(config)
    import_module(f"tuning.training.{method}_training").train(config, run, start, [])
    first = next(line for line in run.metrics() if "loss" in line)
    if method == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    else:
        assert first.get("kl", first.get("logps/KL", 0.0)) == pytest.approx(0, abs=1e-3)
    assert start.checkpoint is not None
    before = load_file(start.checkpoint / "model.safetensors")
    if "full" not in values:
        assert (
            config.artifact_form == "adapter" and (run.path / "model/adapter_config.json").exists()
        )
        return
    after = load_file(run.path / "model/model.safetensors")
    assert config.artifact_form == "full" and before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_all_weights_of_an_adapter_that_is_merged(home: Path, tmp_path: Path) -> None:
    """The reference of GRPO too is the merged parent and not the base."""
    from tuning.training import dpo_training, grpo_training

    sft = sft_config(**DATA, train_size=32)
    parent = RunDirectory(home / "models" / sft.run_name)
    check(run_entry(home, "run_sft.py", *FLAGS, "--train_size", 32, "--do_training"))
    for trainer, method, more in (
        (dpo_training, "dpo", {"sft_loss_weight": 0.0}),
        (grpo_training, "grpo", {"grpo_beta": 0.1}),
    ):
        config: PTRunConfig = preference_config(
            **DATA, pft_method=method, train_size=8, parent=parent_of(sft, parent.name),
            values={"full": True, **more},
        )  # fmt: skip
        run = RunDirectory(tmp_path / method)
        trainer.train(config, run, start_of(config), [])
        first = run.metrics()[0]
        if method == "dpo":
            assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
        else:
            assert first["kl"] == pytest.approx(0, abs=1e-4)
