"""SFT that stops at pass@k, on the embedded model: what it leaves, that sampling changes nothing of
the training, and that a run which was stopped or killed anywhere ends as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import COLLECTIONS, copy_home
from tuning.inference.probe import PassAtKProbe
from tuning.runs import interrupt, manifest
from tuning.runs.errors import Interrupted
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.monitor import Measurement
from tuning.sweetspots.store import find_sweetspot
from tuning.training import engine_sft, sft_training
from tuning.training.config_training import SFTRunConfig, sft_config

DATA: dict[str, Any] = {"model": "tiny", "dataset": "arith", "task": "math", "train_size": 64}
DROPOUT = {"lora_dropout": 0.1, "save_steps": 1, "eval_steps": 4, "validation_size": 8}
"""With dropout, a random number that sampling used up would change the losses."""
RULES = {
    "pass_at_k_targets": (1.0,),
    "pass_at_k_patience": ("1:1.0",),
    "perplexity_thresholds": (5.0,),
    "early_stop": False,
    "pass_at_k": 2,
    "pass_at_k_every": 3,
    "pass_at_k_prompts": 12,
}
"""pass@2 never rises by 1 nor to 1: the first plateau is that after three steps."""
LABELS = ["ppl-5.0", "pass@2-1.00", "pass@2-1@1.00"]
ENGINE = {"trainer": "engine", "learning_rate": 2e-3}


@pytest.fixture(scope="module", autouse=True)
def site(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        home = copy_home(trained_home, tmp_path_factory.mktemp("pass") / "home")
        patch.setenv("TUNING_HOME", str(home))
        patch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
        yield


def config(**values: Any) -> SFTRunConfig:
    engine = values.get("trainer") == "engine"
    common = {k: v for k, v in DROPOUT.items() if not engine or k != "lora_dropout"}
    return sft_config(**DATA, values=common | values)


def trained(run: SFTRunConfig, folder: Path) -> RunDirectory:
    directory = RunDirectory(folder)
    train = engine_sft.train if run.trainer == "engine" else sft_training.train
    train(run, directory, [])
    return directory


def losses(run: RunDirectory) -> list[tuple[float, float]]:
    return [(x["loss"], x["grad_norm"]) for x in run.metrics() if "loss" in x]


def measured(run: RunDirectory) -> list[tuple[int, float]]:
    return [(x["step"], x["pass@2"]) for x in run.metrics() if "pass@2" in x]


def weights(folder: Path) -> bytes:
    (path,) = folder.glob("*model.safetensors")
    return path.read_bytes()


def untimed(*records: dict[str, Any]) -> list[dict[str, Any]]:
    """Records without what a clock says, by step: a measurement that was put off follows the loss
    of its step.
    """
    times = ("seconds", "train_seconds", "train_runtime", "train_tokens_per_second")
    found = [{k: v for k, v in record.items() if k not in times} for record in records]
    return sorted(found, key=lambda record: (record.get("step", 0), "loss" in record))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return trained(config(**RULES), tmp_path_factory.mktemp("straight") / "run")


def test_both_measures_leave_sweetspots(straight: RunDirectory) -> None:
    assert [step for step, _ in measured(straight)] == [0, 3, 6, 8]
    assert list(straight.result["sweetspots"]) == LABELS
    spots = straight.result["sweetspots"]
    assert spots["pass@2-1@1.00"] == {"state": "reached", "step": 3}
    assert spots["pass@2-1.00"]["state"] == "unreached"
    assert straight.result["pass@2"] == measured(straight)[-1][1]
    spot = straight.path / "checkpoint-sweetspot-pass@2-1@1.00"
    assert manifest.is_whole(spot)
    told = json.loads((spot / "sweetspot_metadata.json").read_text())
    assert (told["threshold_type"], told["threshold_value"]) == ("pass@2_patience", "1@1.00")
    assert (told["global_step"], told["sft_data_used"]) == (3, 48)
    assert told["pass@2"] == dict(measured(straight))[3]
    assert (straight.path / "checkpoint-sweetspot-5.0").is_dir()
    for line in straight.metrics():
        if "pass@2" in line:
            assert 0 <= line["pass@2_low"] <= line["pass@2"] <= line["pass@2_high"] <= 1


def test_sampling_changes_no_bit_of_the_training(straight: RunDirectory, tmp_path: Path) -> None:
    rules = {k: v for k, v in RULES.items() if "pass_at_k" not in k}
    without = trained(config(**rules), tmp_path / "run")
    assert losses(straight) == losses(without)
    assert weights(straight.path / "model") == weights(without.path / "model")


class Break:
    """Lets something happen with one of the portions of answers that are checked in all."""

    def __init__(self, at: int) -> None:
        self.left = at

    def stop(self) -> None:
        """Ask to stop, as a signal does."""
        self.left -= 1
        if self.left == 0:
            interrupt.ask_to_stop()
        if interrupt.asked_to_stop():
            raise Interrupted

    def die(self) -> None:
        """End as a killed process does: nothing is saved."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("how", "portion"), [("stop", 1), ("stop", 4), ("die", 5)])
def test_ended_within_a_measurement_it_continues_to_the_same_result(
    straight: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, portion: int
) -> None:
    """A measurement takes two portions; the fourth is the second of that after three steps."""
    run = config(**RULES)
    with monkeypatch.context() as patch, pytest.raises((Interrupted, KeyboardInterrupt)):
        patch.setattr(interrupt, "check", getattr(Break(portion), how))
        trained(run, tmp_path / "run")
    interrupt.reset()
    before = manifest.newest_whole(tmp_path / "run")
    expected = {("stop", 1): None, ("stop", 4): "checkpoint-3", ("die", 5): "checkpoint-5"}
    assert (before and before.name) == expected[how, portion]
    directory = trained(run, tmp_path / "run")
    assert untimed(*directory.metrics()) == untimed(*straight.metrics())
    assert untimed(directory.result) == untimed(straight.result)
    for folder in ("model", "checkpoint-sweetspot-pass@2-1@1.00", "checkpoint-sweetspot-5.0"):
        assert weights(directory.path / folder) == weights(straight.path / folder)


def test_it_stops_when_all_are_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By targets that a model which learns faster than this one would pass in that order."""
    values = iter([0.1, 0.25, 0.55, 0.6, 0.8])

    def improving(*_: Any, **__: Any) -> Measurement:
        value = next(values)
        return Measurement(value=value, metrics={"pass@1": value})

    monkeypatch.setattr(PassAtKProbe, "measure", improving)
    run = config(
        pass_at_k_targets=(0.5, 0.2, 0.05), pass_at_k_every=1, perplexity_thresholds=(1.01, 5.0)
    )
    assert [rule.label for rule in run.rules] == [
        "ppl-5.0", "ppl-1.01", "pass@1-0.05", "pass@1-0.20", "pass@1-0.50",
    ]  # fmt: skip
    both = config(pass_at_k_targets=(0.2, 0.5), pass_at_k_every=1)
    directory = trained(both, tmp_path / "run")
    assert directory.result["global_step"] == 2
    assert find_sweetspot(directory, "pass@1-0.50").data_used == 32


def test_on_the_engine_what_is_measured_is_the_model_that_is_saved(tmp_path: Path) -> None:
    """And no loss differs from those of a run that does not sample."""
    from tuning.inference.generator import opened
    from tuning.training.pools import problems
    from tuning.weights.artifact import artifact_of

    rules = {k: v for k, v in RULES.items() if k != "perplexity_thresholds"}
    run = config(**ENGINE, **rules)
    with_it = trained(run, tmp_path / "with")
    without = trained(config(**ENGINE), tmp_path / "without")
    assert losses(with_it) == losses(without)
    assert not (with_it.path / ".pass_at_k.tmp").exists()
    whole = [load_file(each.path / "model/model.safetensors") for each in (with_it, without)]
    assert all(whole[0][name].equal(whole[1][name]) for name in whole[0])
    spot = find_sweetspot(with_it, "pass@2-1@1.00")
    artifact = artifact_of(run.model)
    probe = PassAtKProbe(problems(run), run.task, run.pass_at_k, run.hash)
    with opened("hf", replace(artifact, base=str(spot.path))) as generator:
        assert probe.measure(generator).value == spot.metadata["pass@2"]
