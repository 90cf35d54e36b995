"""--evaluate_before around real trainings, by the command line and by examples/01 and 02: what it
measures, that it changes nothing, that nothing is measured twice, and that a kill loses nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import check, copy_home, environment, run_entry, run_script, start_entry
from tuning.config import CHECKOUT, PACKAGE
from tuning.runs.rundir import RunDirectory

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math")
ALL = ("--do_training", "--do_inference", "--do_evaluation")
BEFORE = ("--evaluate_before", "--heldout_pairs", 16)
SFT = "tiny_sft-arith-48"
DPO = f"{SFT}_pt-arith-24"


def example(home: Path, name: str, *words: object) -> str:
    """What an example prints."""
    done = run_script(home, CHECKOUT / "examples" / name, *words, cwd=home.parent)
    return check(done).stdout


@pytest.fixture(scope="module")
def measured(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A home with an SFT run and a DPO run from it, both by the examples, and what they printed."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("before") / "home")
    first = example(home, "01_run_sft.py", "--train-size", 48, "--output-dir", home)
    sizes = ("--sft-train-size", 48, "--train-size", 24)
    second = example(home, "02_run_dpo.py", *sizes, "--output-dir", home)
    return home, first, second


def changes(home: Path, run: str) -> dict[str, Any]:
    """before_after.json of a run."""
    found: dict[str, Any] = json.loads((home / "models" / run / "before_after.json").read_text())
    return found


def touched(home: Path) -> dict[str, int]:
    """When each status and each file of results was last written."""
    names = ("status.json", "scores.json", "likelihoods.json", "before_after.json")
    return {str(p.relative_to(home)): p.stat().st_mtime_ns for n in names for p in home.rglob(n)}


def test_the_examples_make_the_runs_of_the_command_line_and_measuring_changes_none(
    trained_home: Path, measured: tuple[Path, str, str], tmp_path: Path
) -> None:
    """Without --evaluate_before, another home ends with the same files, bit for bit."""
    home = copy_home(trained_home, tmp_path / "home")
    check(run_entry(home, "run_sft.py", *DATA, "--train_size", 48, *ALL))
    sizes = ("--train_size", 24, "--sft_train_size", 48)
    check(run_entry(home, "run_dpo.py", *DATA, *sizes, *ALL))
    for run in (SFT, DPO):
        for file in (
            f"models/{run}/model/adapter_model.safetensors",
            f"outputs/math/{run}/responses.jsonl",
        ):
            assert (home / file).read_bytes() == (measured[0] / file).read_bytes(), file
        ours, theirs = (RunDirectory(h / "models" / run).hash for h in (home, measured[0]))
        assert ours == theirs
    assert not list(home.rglob("before_after.json"))


def test_the_command_line_finds_the_runs_of_the_examples_done(
    measured: tuple[Path, str, str],
) -> None:
    before = touched(measured[0])
    sizes = ("--train_size", 24, "--sft_train_size", 48)
    flags = ("--evaluate_before", "--heldout_pairs", 200)
    done = check(run_entry(measured[0], "run_dpo.py", *DATA, *sizes, *ALL, *flags))
    assert "already trained" in done.stdout + done.stderr
    assert touched(measured[0]) == before


def test_the_examples_print_what_changed(measured: tuple[Path, str, str]) -> None:
    _, first, second = measured
    assert "before: tiny  " in first and f"after: {SFT}" in first
    assert "pass@1" in first and "perplexity" in first and "implicit reward" not in first
    assert "implicit reward accuracy  0.500" in second and f"after: {DPO}" in second


def test_perplexity_is_what_the_training_itself_measured(
    measured: tuple[Path, str, str],
) -> None:
    found = changes(measured[0], SFT)
    result = RunDirectory(measured[0] / "models" / SFT).result
    assert found["before"]["perplexity"]["estimate"] == pytest.approx(
        result["base_perplexity"], rel=1e-4
    )
    assert found["after"]["perplexity"]["estimate"] == pytest.approx(result["perplexity"], rel=1e-4)


def test_the_before_of_a_training_is_the_after_of_its_parent(
    measured: tuple[Path, str, str],
) -> None:
    parent, child = (changes(measured[0], run) for run in (SFT, DPO))
    for key in ("model", "score", "perplexity"):
        assert child["before"][key] == parent["after"][key]
    measurements = sorted(path.name for path in measured[0].glob("outputs/likelihoods/*"))
    models = ("tiny", SFT, DPO)
    expected = [*(f"{m}_validation" for m in models), f"{SFT}_preference", f"{DPO}_preference"]
    assert measurements == sorted(expected)


def test_rewards_are_those_of_a_forward_pass_a_pair(
    measured: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last pairs of the pool, one sequence at a time, with the parent as reference."""
    from tests.conftest import ARITH, COLLECTIONS
    from tuning.data import train_dataset
    from tuning.data.encoding import encode_pairs
    from tuning.training.config_training import model_config
    from tuning.weights import loading
    from tuning.weights.artifact import artifact_of

    monkeypatch.setenv("TUNING_HOME", str(measured[0]))
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    rows = train_dataset.rows(ARITH, "preference")[-200:-196]
    margins = []
    for run in (SFT, DPO):
        artifact = artifact_of(model_config("tiny"), RunDirectory(measured[0] / "models" / run))
        model, tokenizer = loading.open_model(artifact), loading.open_tokenizer(artifact)
        model.eval()
        margins.append(
            [
                _likelihood(model, pair.prompt, pair.chosen)
                - _likelihood(model, pair.prompt, pair.rejected)
                for pair in encode_pairs(tokenizer, rows, 192, str)
            ]
        )
    expected = [policy - reference for reference, policy in zip(*margins, strict=True)]
    found = []
    for run in (SFT, DPO):
        path = measured[0] / "outputs/likelihoods" / f"{run}_preference/likelihoods.json"
        told = json.loads(path.read_text())["answers"]
        found.append([told["rejected"]["nll"][n] - told["chosen"]["nll"][n] for n in range(4)])
    ours = [policy - reference for reference, policy in zip(*found, strict=True)]
    assert ours == pytest.approx(expected, abs=1e-3)
    assert any(abs(margin) > 1e-3 for margin in ours)


def _likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
    return float(chosen.sum())


@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_every_method_is_measured_and_a_parent_once(
    measured: tuple[Path, str, str], method: str
) -> None:
    """Beside DPO, which the example trains; all start from the same model."""
    before = touched(measured[0])
    flags = ("--pft_method", method, "--train_size", 16, "--sft_train_size", 48)
    more = ("--evaluate_before", "--heldout_pairs", 200)
    check(run_entry(measured[0], "run_dpo.py", *DATA, *flags, *ALL, *more))
    assert {path: touched(measured[0])[path] for path in before} == before
    found = changes(measured[0], f"{SFT}_pt-arith-16_{method}")
    assert found["before"] == changes(measured[0], DPO)["before"] | {
        "reward": found["before"]["reward"]
    }
    assert found["before"]["reward"]["estimate"] == 0.5
    assert found["after"]["reward"]["pairs"] == 200
    assert 0 <= found["after"]["reward"]["estimate"] <= 1
    assert found["change"]["perplexity"]["estimate"] > 0


def test_killed_after_the_first_half_the_engine_goes_on(trained_home: Path, tmp_path: Path) -> None:
    """SFT on the engine, killed once what it starts from is measured."""
    home = copy_home(trained_home, tmp_path / "home")
    flags = (*DATA, "--train_size", 32, "--trainer", "engine", "--do_training", *BEFORE)
    first = start_entry(home, "run_sft.py", *flags)
    half = home / "outputs/likelihoods/tiny_validation/likelihoods.json"
    deadline = time.monotonic() + 300
    while not half.exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    written = half.stat().st_mtime_ns
    check(run_entry(home, "run_sft.py", *flags))
    (run,) = home.glob("models/tiny_sft-arith-32-*")
    assert RunDirectory(run).status["state"] == "done"
    found = changes(home, run.name)
    assert found["before"]["score"] is None and found["after"]["score"] is None
    result = RunDirectory(run).result
    for side, key in (("before", "base_perplexity"), ("after", "perplexity")):
        assert found[side]["perplexity"]["estimate"] == pytest.approx(result[key], rel=1e-4)
    assert not list(home.glob("outputs/math/tiny_sft-*")), "no answers were asked for"
    restarted = json.loads(half.read_text())["answers"]["completion"]
    assert len(restarted["nll"]) == 32 and half.stat().st_mtime_ns >= written


def test_settings_of_what_is_not_asked_for_are_refused(tiny_home: Path) -> None:
    flags = ("--train_size", 16, "--do_training", "--heldout_pairs", 5)
    refused = check(run_entry(tiny_home, "run_sft.py", *DATA, *flags), 2)
    assert "--heldout_pairs is for --evaluate_before; add it." in refused.stderr


UNSLOTH = """
import os, sys
early = sorted({"transformers", "peft", "trl"} & sys.modules.keys())
os.write(2, f"imported before: {early}".encode())
os._exit(7)
"""
"""Stands where unsloth would, to see what came before it; it patches and trains nothing."""


@pytest.mark.parametrize("script", ["run_sft.py", "run_dpo.py"])
def test_unsloth_comes_before_what_it_patches(
    trained_home: Path, tmp_path: Path, script: str
) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    (tmp_path / "unsloth-2026.10.7.dist-info").mkdir()
    (tmp_path / "unsloth-2026.10.7.dist-info/METADATA").write_text("Name: unsloth\nVersion: 2\n")
    (tmp_path / "unsloth.py").write_text(UNSLOTH)
    flags = ("--train_size", "8", "--backend_train", "unsloth", *ALL, "--evaluate_before")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(PACKAGE / script), *DATA, *flags, "--autotune"], text=True,
        env=environment(home) | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "0"},
        cwd=home.anchor, capture_output=True, check=False,
    )  # fmt: skip
    check(done, 7)
    assert done.stderr.endswith("imported before: []")
