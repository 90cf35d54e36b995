"""What lies on disk is what was trained: artifacts, references, batches however they are split."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COLLECTIONS, check, copy_home, run_entry
from tuning.runs.rundir import RunDirectory

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math")
WHOLE = ("--full_modules", "embed_tokens", "lm_head")


@pytest.fixture(scope="module")
def with_sft(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SFT runs with a sweetspot: one trains an adapter, one whole modules too."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("artifacts") / "home")
    for more in ((), WHOLE):
        check(
            run_entry(
                home, "run_sft.py", *DATA, "--train_size", 96, "--perplexity_thresholds", 5.0,
                "--early_stop", "false", *more, "--do_training",
            )
        )  # fmt: skip
    return home


def runs(home: Path) -> list[RunDirectory]:
    """The SFT runs, the one with whole modules last."""
    found = [
        RunDirectory(path.parent.parent)
        for path in home.glob("models/*/checkpoint-*/manifest.json")
    ]
    return sorted(
        found, key=lambda run: len((run.config or {})["settings"]["lora"]["full_modules"])
    )


def perplexity(home: Path, run: RunDirectory, checkpoint: Path | None) -> float:
    """Measured anew on what is loaded from disk."""
    from tuning.data.encoding import encode
    from tuning.evaluation.perplexity import measure
    from tuning.flags import restore
    from tuning.training.config_training import SFTRunConfig
    from tuning.weights.artifact import artifact_of
    from tuning.weights.loading import open_model, open_tokenizer

    config: Any = restore(SFTRunConfig, (run.config or {})["settings"])
    rows = config.dataset.rows("validation")[: config.perplexity.validation_size]
    artifact = artifact_of(config.model, run, checkpoint)
    where = config.dataset.where("validation")
    pool = encode(open_tokenizer(artifact), rows, config.model.max_seq_length, where)
    return measure(open_model(artifact), pool).token_level


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole modules"])
def test_what_is_loaded_is_what_was_measured(
    with_sft: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setenv("TUNING_HOME", str(with_sft))
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    run = runs(with_sft)[int(whole)]
    spot = run.path / "checkpoint-sweetspot-5.0"
    metadata = json.loads((spot / "sweetspot_metadata.json").read_text())
    assert perplexity(with_sft, run, spot) == pytest.approx(metadata["perplexity"], rel=1e-4)
    assert perplexity(with_sft, run, None) == pytest.approx(run.result["perplexity"], rel=1e-4)
    assert run.result["perplexity"] < metadata["perplexity"] < run.result["base_perplexity"]


@pytest.mark.parametrize("merge", ["false", "true"], ids=["continued", "merged"])
@pytest.mark.parametrize("start", ["base", "sft", "sweetspot"])
def test_the_reference_is_where_the_policy_starts(with_sft: Path, start: str, merge: str) -> None:
    run = runs(with_sft)[0]
    where = {
        "base": ("--train_size", 16),
        "sft": ("--train_size", 16, "--parent_run", run.name),
        "sweetspot": ("--parent_run", run.name, "--sweetspot", "ppl-5.0", "--total_data", 80),
    }[start]
    before = set(with_sft.glob("models/*"))
    settings = ("--sft_loss_weight", 0, "--merge_parent", merge)
    check(run_entry(with_sft, "run_dpo.py", *DATA, *where, *settings, "--do_training"))
    (made,) = set(with_sft.glob("models/*")) - before
    first = RunDirectory(made).metrics()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("script", "micros"), [("run_sft.py", (16, 3)), ("run_dpo.py", (8, 2))], ids=["sft", "dpo"]
)
def test_the_micro_batch_changes_nothing_but_rounding(
    tiny_home: Path, script: str, micros: tuple[int, int]
) -> None:
    """Also where the last micro-batch of an epoch is smaller than the others."""
    found = []
    for micro in micros:
        effective = () if script == "run_dpo.py" else ("--effective_batch_size", 48)
        flags = ("--train_size", 51, *effective, "--micro_batch_size", micro)
        check(run_entry(tiny_home, script, *DATA, *flags, "--do_training", "--force"))
        (path,) = set(tiny_home.glob("models/tiny_*"))
        run = RunDirectory(path)
        found.append(([line["loss"] for line in run.metrics() if "loss" in line], run.result))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1]["train_tokens"] == found[1][1]["train_tokens"]
    assert found[0][1]["data_points_seen"] == found[1][1]["data_points_seen"]


def test_an_adapter_that_is_trained_further_keeps_its_shape(with_sft: Path) -> None:
    run = runs(with_sft)[0]
    flags = ("--train_size", 8, "--parent_run", run.name, "--do_training")
    check(run_entry(with_sft, "run_dpo.py", *DATA, *flags))
    again = check(run_entry(with_sft, "run_dpo.py", *DATA, *flags, "--lora_r", 4), 2)
    assert "lora_r is 4, and the run continues the adapter of its SFT run, which" in again.stderr


def test_anew_means_that_what_was_sampled_before_is_gone(tiny_home: Path) -> None:
    flags = ("--train_size", 16, "--do_training", "--do_inference", "--do_evaluation")
    check(run_entry(tiny_home, "run_sft.py", *DATA, *flags))
    scores = tiny_home / "outputs/math/tiny_sft-arith-16/scores.json"
    before = scores.stat().st_mtime_ns
    only = ("--train_size", 16, "--do_training", "--force")
    done = check(run_entry(tiny_home, "run_sft.py", *DATA, *only))
    assert "its evaluation is stale and was removed" in done.stdout
    check(run_entry(tiny_home, "run_sft.py", *DATA, *flags))
    assert scores.stat().st_mtime_ns > before
