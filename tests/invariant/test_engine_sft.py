"""SFT of all weights on the engine: the sweetspots that SFT with TRL has, as whole models; the same
with several processes, and after a stop; and what is forked from them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.conftest import (
    COLLECTIONS,
    check,
    copy_home,
    environment,
    run_entry,
    start_entry,
    torchrun,
)
from tests.engine import small
from tuning.config import PACKAGE
from tuning.runs import manifest
from tuning.runs.rundir import RunDirectory

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math")
SETTINGS = (
    *DATA, "--trainer", "engine", "--learning_rate", "2e-3", "--train_size", "160",
    "--perplexity_thresholds", "4.0", "3.0", "--eval_steps", "4", "--early_stop", "false",
)  # fmt: skip
LABELS = ("4.0", "3.0")
ALL = ("--do_training", "--do_inference", "--do_evaluation")


@pytest.fixture(scope="module")
def straight(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of one process that nobody disturbed."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("engine-sft") / "home")
    check(run_entry(home, "run_sft.py", *SETTINGS, "--do_training"))
    return only_run(home)


@pytest.fixture
def here(straight: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TUNING_HOME of the undisturbed run, for this process too."""
    home = home_of(straight)
    monkeypatch.setenv("TUNING_HOME", str(home))
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    return home


def home_of(run: RunDirectory) -> Path:
    return run.path.parents[1]


def only_run(home: Path) -> RunDirectory:
    (path,) = home.glob("models/tiny_sft-*")
    return RunDirectory(path)


def spot(run: RunDirectory, label: str) -> Path:
    return run.path / f"checkpoint-sweetspot-{label}"


def metadata(run: RunDirectory, label: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((spot(run, label) / "sweetspot_metadata.json").read_text())
    return found


def measured(run: RunDirectory) -> list[tuple[int, float, float]]:
    """(step, both perplexities) of all measurements."""
    keys = ("step", "perplexity", "perplexity_sample_mean")
    lines = [line for line in run.metrics() if "perplexity" in line]
    return [tuple(line[key] for key in keys) for line in lines]


def test_result_and_metadata_are_those_of_sft_with_trl(straight: RunDirectory) -> None:
    result = straight.result
    assert set(result) == {
        "global_step", "train_size", "data_points_seen", "data_used", "train_tokens",
        "train_seconds", "device", "processes", "perplexity", "base_perplexity", "sweetspots",
    }  # fmt: skip
    assert (result["global_step"], result["data_points_seen"], result["data_used"]) == (
        20, 320, 160
    )  # fmt: skip
    assert result["sweetspots"] == {
        "ppl-4.0": {"state": "reached", "step": 4}, "ppl-3.0": {"state": "reached", "step": 12},
    }  # fmt: skip
    assert [step for step, *_ in measured(straight)] == [0, 4, 8, 12, 16, 20]
    told = metadata(straight, "4.0")
    assert (told["threshold_type"], told["threshold_value"]) == ("perplexity", 4.0)
    assert (told["global_step"], told["sft_data_used"]) == (4, 64)
    assert told["config_hash"] == straight.hash
    assert straight.config is not None and straight.config["artifact"] == "full"
    assert not manifest.checkpoints(straight.path), "a run that is done has nothing to resume"


def test_sweetspots_are_whole_models_with_the_perplexity_that_was_measured(
    straight: RunDirectory, here: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from tuning.evaluation.perplexity import measure
    from tuning.flags import restore
    from tuning.training.config_training import SFTRunConfig
    from tuning.training.pools import sft_pools
    from tuning.weights.artifact import artifact_of
    from tuning.weights.loading import open_model, open_tokenizer

    config: Any = restore(SFTRunConfig, (straight.config or {})["settings"])
    _, pool = sft_pools(config, open_tokenizer(artifact_of(config.model)))
    base = measure(open_model(artifact_of(config.model)), pool)
    assert base.token_level == pytest.approx(straight.result["base_perplexity"], rel=1e-5)
    assert base.sample_mean == pytest.approx(measured(straight)[0][2], rel=1e-5)
    for label in LABELS:
        assert manifest.is_whole(spot(straight, label))
        whole = AutoModelForCausalLM.from_pretrained(spot(straight, label))
        found = measure(whole, pool)
        assert found.token_level == pytest.approx(metadata(straight, label)["perplexity"], rel=1e-5)
        loaded = open_model(artifact_of(config.model, straight, spot(straight, label)))
        assert small.same(loaded.state_dict(), whole.state_dict())
    final = measure(open_model(artifact_of(config.model, straight)), pool)
    assert final.token_level == pytest.approx(straight.result["perplexity"], rel=1e-5)


def test_a_fork_has_a_new_adapter_over_the_whole_sweetspot(
    straight: RunDirectory, here: Path
) -> None:
    from tuning.flags import restore
    from tuning.weights.artifact import artifact_of
    from tuning.weights.config import ModelLoadConfig
    from tuning.weights.loading import open_model

    flags = ("--parent_run", straight.name, "--sweetspot", "4.0", "--total_data", 88)
    check(run_entry(here, "run_dpo.py", *DATA, *flags, "--sft_loss_weight", 0, *ALL))
    (path,) = here.glob("models/tiny_sweetspot-ppl-4.0_dpo-arith-24-*")
    fork = RunDirectory(path)
    assert fork.done("train") and fork.result["data_used"] == 24
    assert fork.config is not None and fork.config["artifact"] == "adapter"
    losses = [line["loss"] for line in fork.metrics() if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), "the reference is the sweetspot"
    model: Any = restore(ModelLoadConfig, fork.config["settings"]["model"])
    under = open_model(artifact_of(model, fork)).unload().state_dict()
    whole = load_file(spot(straight, "4.0") / "model.safetensors")
    assert all(torch.equal(under[name], whole[name]) for name in whole)
    scores = json.loads((here / "outputs/math" / path.name / "scores.json").read_text())
    assert scores["prompts"] == 8


def test_what_follows_a_whole_model_may_be_merged_into_it(
    straight: RunDirectory, here: Path
) -> None:
    flags = ("--parent_run", straight.name, "--train_size", 8, "--pft_method", "grpo")
    check(run_entry(here, "run_dpo.py", *DATA, *flags, "--do_training"))
    (path,) = here.glob(f"models/{straight.name}_pt-*_grpo")
    names = [load_file(p / "model/model.safetensors").keys() for p in (straight.path, path)]
    assert names[0] == names[1]


@pytest.mark.parametrize("more", [(), ("--sep_size", "2", "--parallel", "ddp")], ids=["dp", "sep"])
def test_two_processes_reach_the_same_sweetspots(
    straight: RunDirectory, trained_home: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """And one of them samples and scores what both have trained."""
    home = copy_home(trained_home, tmp_path / "home")
    command = torchrun(2, PACKAGE / "run_sft.py", *SETTINGS, *more, *ALL)
    done = warm.run(command, environment(home), home, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    run = only_run(home)
    assert run.hash == straight.hash
    assert run.result["sweetspots"] == straight.result["sweetspots"]
    assert run.result["train_tokens"] == straight.result["train_tokens"]
    for one, two in zip(measured(straight), measured(run), strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    for label in LABELS:
        one, two = (load_file(spot(r, label) / "model.safetensors") for r in (straight, run))
        assert one.keys() == two.keys()
        assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-3
    assert (home / "outputs/math" / run.name / "scores.json").exists()
    assert done.stdout.count("pass@1") == 1


def test_stopped_and_killed_is_straight(
    straight: RunDirectory, trained_home: Path, tmp_path: Path
) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    stop(home, signal.SIGTERM, 75, anew=True)
    stop(home, signal.SIGKILL, -signal.SIGKILL, anew=False)
    check(run_entry(home, "run_sft.py", *SETTINGS, "--do_training"))
    run = only_run(home)
    assert measured(run) == measured(straight)
    losses = [[x["loss"] for x in r.metrics() if "loss" in x] for r in (run, straight)]
    assert losses[0] == losses[1]
    timeless = [
        {k: v for k, v in r.result.items() if k != "train_seconds"} for r in (run, straight)
    ]
    assert timeless[0] == timeless[1]
    for folder in ("model", *(spot(straight, label).name for label in LABELS)):
        weights = [(r.path / folder / "model.safetensors").read_bytes() for r in (run, straight)]
        assert weights[0] == weights[1], folder


def stop(home: Path, number: signal.Signals, code: int, anew: bool) -> None:
    """Start the run, and send a signal once it has saved a checkpoint more."""
    before = saved(home)
    flags = (*SETTINGS, "--do_training", "--save_steps", "3")
    process = start_entry(home, "run_sft.py", *flags, anew=anew)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if saved(home) > before:
            os.kill(process.pid, number)
            break
        time.sleep(0.01)
    assert process.wait(timeout=60) == code


def saved(home: Path) -> int:
    """The step of the newest whole checkpoint."""
    found = [manifest.newest_whole(path) for path in home.glob("models/tiny_sft-*")]
    return max((int(path.name.rpartition("-")[2]) for path in found if path), default=0)


def test_a_run_that_was_stopped_early_and_killed_trains_no_further(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuning.training import engine_sft
    from tuning.training.config_training import sft_config

    values = {
        "trainer": "engine", "learning_rate": 2e-3, "perplexity_thresholds": (4.0,),
        "eval_steps": 4, "save_steps": 1,
    }  # fmt: skip
    config = sft_config(model="tiny", dataset="arith", task="math", train_size=160, values=values)
    directory = RunDirectory(tmp_path / "run")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine_sft, "_finish", killed)
        engine_sft.train(config, directory, [])
    before = directory.metrics()
    assert before[-1]["step"] == 4
    engine_sft.train(config, directory, [])
    assert directory.metrics() == before
    assert directory.result["global_step"] == 4
    assert directory.result["sweetspots"] == {"ppl-4.0": {"state": "reached", "step": 4}}
    final, reached = (
        load_file(folder / "model.safetensors")
        for folder in (directory.path / "model", spot(directory, "4.0"))
    )
    assert small.same(final, reached)


def test_orthogonal_subspaces_are_merged_into_what_is_saved(tiny_home: Path) -> None:
    flags = ("--trainer", "engine", "--osft", "--osft_unfreeze_rank_ratio", 0.5, "--train_size", 48,
             "--learning_rate", "2e-3", "--do_training")  # fmt: skip
    check(run_entry(tiny_home, "run_sft.py", *DATA, *flags))
    run = only_run(tiny_home)
    base, kept = (
        load_file(f / "model/model.safetensors") for f in (tiny_home / "models/tiny", run.path)
    )
    assert base.keys() == kept.keys()
    assert small.outside(base, kept, 0.5)
    assert run.result["perplexity"] < run.result["base_perplexity"]
