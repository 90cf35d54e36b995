"""Both trainers of SFT have the same losses: TRL and the engine give the same value for the same
batch, and how a step is computed changes nothing but rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COLLECTIONS, check, run_entry
from tuning.runs.rundir import RunDirectory
from tuning.training.config_training import preference_config, sft_config

DATA: dict[str, Any] = {"model": "tiny", "dataset": "arith", "task": "math"}
SHORT: dict[str, Any] = {"max_seq_length": 192, "validation_size": 4, "eval_steps": 100}


@pytest.fixture
def folder(tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs of this process go; the base model is trained."""
    monkeypatch.setenv("TUNING_HOME", str(tiny_home))
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    return tmp_path


def sft_losses(folder: Path, name: str, *, size: int = 48, **values: Any) -> list[float]:
    """The losses of an SFT run of three steps."""
    from tuning.training import engine_sft, sft_training

    config = sft_config(**DATA, train_size=size, values=SHORT | {"num_train_epochs": 1.0} | values)
    directory = RunDirectory(folder / name)
    trainer = engine_sft if config.trainer == "engine" else sft_training
    trainer.train(config, directory, [])
    return [line["loss"] for line in directory.metrics() if "loss" in line]


@pytest.mark.parametrize("trainer", ["trl", "engine"])
def test_focal_without_focus_is_cross_entropy(folder: Path, trainer: str) -> None:
    micro = {"micro_batch_size": 8} if trainer == "trl" else {"max_tokens_per_gpu": 1024}
    run = {"trainer": trainer, **micro}
    plain = sft_losses(folder, "plain", **run)
    unfocused = {"loss": "focal", "focal_alpha": 1.0, "focal_gamma": 0.0}
    assert len(plain) == 3
    assert sft_losses(folder, "focal", **run, **unfocused) == pytest.approx(plain, abs=1e-5)
    own = {"loss": "tuning.engine.losses:cross_entropy"}
    assert sft_losses(folder, "own", **run, **own) == pytest.approx(plain, abs=1e-5)
    focused = sft_losses(folder, "focused", **run, loss="focal")
    assert all(ours < theirs for ours, theirs in zip(focused, plain, strict=True))


@pytest.mark.parametrize("loss", [{}, {"loss": "focal", "focal_gamma": 2.0, "focal_alpha": 0.5}])
def test_both_trainers_have_the_same_loss_for_the_same_batch(
    folder: Path, loss: dict[str, Any]
) -> None:
    """One batch of all examples, before anything has moved; in micro-batches, or packed."""
    found = [
        sft_losses(folder, "trl", size=16, micro_batch_size=4, **loss),
        sft_losses(folder, "trl, in one", size=16, micro_batch_size=16, **loss),
        sft_losses(folder, "engine", size=16, trainer="engine", max_tokens_per_gpu=512, **loss),
    ]
    assert found == [pytest.approx(found[0], rel=1e-5)] * 3


def test_activations_that_are_computed_again_change_only_rounding(folder: Path) -> None:
    for trainer in ("trl", "engine"):
        losses = [
            sft_losses(folder, f"{trainer} {on}", trainer=trainer, gradient_checkpointing=on)
            for on in (False, True)
        ]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_also_in_preference_tuning(folder: Path, method: str) -> None:
    from importlib import import_module

    from tuning.training.start import start_of

    trainer = import_module(f"tuning.training.{method}_training")
    losses = []
    for on in (False, True):
        config = preference_config(
            **DATA, pft_method=method, train_size=24, values={"gradient_checkpointing": on}
        )
        directory = RunDirectory(folder / f"{method} {on}")
        trainer.train(config, directory, start_of(config), [])
        losses.append([line["loss"] for line in directory.metrics() if "loss" in line])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("script", ["run_sft.py", "run_pretrain.py"])
@pytest.mark.parametrize(
    ("loss", "words"),
    [("nowhere.losses.f", "there is no module 'nowhere.losses'"),
     ("tuning.engine.losses:nothing", "has no attribute 'nothing'")],
)  # fmt: skip
def test_a_loss_that_cannot_be_imported_is_one_line(
    home: Path, script: str, loss: str, words: str
) -> None:
    sft = ("--dataset", "arith", "--task", "math", "--train_size", 8, "--do_training")
    more = sft if script == "run_sft.py" else ("--max_steps", 1)
    refused = check(run_entry(home, script, "--model", "tiny", *more, "--loss", loss), 2)
    assert words in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (home / "models").exists()
