"""An experiment on data of one's own: SFT on the engine in orthogonal subspaces, with a loss of
one's own, and from its sweetspot KTO on unpaired rows and GRPO on prompts and answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import ARITH, COLLECTIONS, check, copy_home, run_entry
from tests.engine import small
from tuning.data import train_dataset
from tuning.runs.rundir import RunDirectory

LOSS = """
import torch

def doubled(logits, labels):
    return 2 * torch.nn.functional.cross_entropy(logits, labels, reduction="none")

def averaged(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels)
"""
OSFT = ("--trainer", "engine", "--osft", "--osft_unfreeze_rank_ratio", 0.5)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with collections.yaml, two datasets and a module of losses: `opinions` has unpaired
    preference rows, `questions` has prompts and answers only.
    """
    root = tmp_path_factory.mktemp("own")
    (root / "own_losses.py").write_text(LOSS)
    pools = {
        pool: written(root / f"{pool}.jsonl", train_dataset.rows(ARITH, pool, 96))
        for pool in ("sft", "validation", "test")
    }
    pairs = train_dataset.rows(ARITH, "preference", 96)
    opinions = [
        {"prompt": row["prompt"], "completion": row[("chosen", "rejected")[n % 2]],
         "label": n % 2 == 0, "answer": row["answer"]}
        for n, row in enumerate(pairs)
    ]  # fmt: skip
    questions = [{"prompt": row["prompt"], "answer": row["answer"]} for row in pairs]
    found = yaml.safe_load(COLLECTIONS.read_text())
    found["datasets"] |= {
        name: {"loader": "jsonl", "preference": written(root / f"{name}.jsonl", rows), **pools}
        for name, rows in (("opinions", opinions), ("questions", questions))
    }
    found["tasks"]["math"]["datasets"] += ["opinions", "questions"]
    (root / "collections.yaml").write_text(yaml.safe_dump(found))
    return root


@pytest.fixture(scope="module")
def home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory, site: Path) -> Path:
    """A home in which the experiment on unpaired rows has ended well."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("experiment") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site), prepend=":")
        check(
            run_entry(
                home, "run_sweetspot_pipeline.py", "--model", "tiny", "--dataset", "opinions",
                "--task", "math", "--total_data", 96, "--sft_data", 80, *OSFT,
                "--perplexity_thresholds", 5.0, "--sft_learning_rate", "2e-3",
                "--sft_loss", "own_losses.doubled", "--pft_method", "kto", "grpo",
                "--pft_kl_batch_size", 8, "--no_references", "--do_sft", "--do_dpo",
                "--do_inference", "--do_evaluation",
                collections=site / "collections.yaml",
            )
        )  # fmt: skip
    return home


def run_of(home: Path, pattern: str) -> RunDirectory:
    (path,) = home.glob(f"models/{pattern}")
    return RunDirectory(path)


def settings(run: RunDirectory) -> dict[str, Any]:
    return (run.config or {})["settings"]


def test_the_engine_trains_in_subspaces_and_its_sweetspots_fork(home: Path) -> None:
    sft = run_of(home, "tiny_sft-opinions-80-*")
    assert settings(sft)["engine"]["osft"] and settings(sft)["engine"]["trainer"] == "engine"
    assert settings(sft)["loss"]["loss"] == "own_losses:doubled"
    base, spot, kept = (
        load_file(folder / "model.safetensors")
        for folder in (home / "models/tiny/model", sft.path / "checkpoint-sweetspot-5.0",
                       sft.path / "model")
    )  # fmt: skip
    assert small.outside(base, spot, 0.5) and small.outside(base, kept, 0.5)
    losses = [line["loss"] for line in sft.metrics() if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_forks_take_the_rows_that_are_left_and_are_evaluated(home: Path, method: str) -> None:
    """An unpaired row is an example, as a prompt is one."""
    sft = run_of(home, "tiny_sft-opinions-80-*")
    fork = run_of(home, f"tiny_sweetspot-ppl-5.0_{method}-opinions-*")
    spot = json.loads((sft.path / "checkpoint-sweetspot-5.0/sweetspot_metadata.json").read_text())
    left = 96 - spot["sft_data_used"]
    assert fork.result["train_size"] == left > 0
    dropped = left % 8 if method == "grpo" else 0
    assert fork.result["data_used"] == left - dropped
    form = "full" if method == "grpo" else "adapter"  # as the model's settings merge for it
    assert fork.config is not None and fork.config["artifact"] == form
    scores = json.loads((home / "outputs/math" / fork.name / "scores.json").read_text())
    assert scores["prompts"] == 8


def test_prompts_and_answers_are_all_that_grpo_needs(home: Path, site: Path) -> None:
    asked = ("--model", "tiny", "--dataset", "questions", "--task", "math", "--train_size", 8)
    where = {"collections": site / "collections.yaml"}
    done = run_entry(home, "run_dpo.py", *asked, "--pft_method", "grpo", "--do_training", **where)
    check(done)
    assert run_of(home, "tiny_pt-questions-8_grpo").result["data_used"] == 8
    for method in ("dpo", "kto"):
        refused = run_entry(
            home, "run_dpo.py", *asked, "--pft_method", method, "--do_training", **where
        )
        words = f"questions.jsonl:1 lacks chosen, rejected; {method} needs prompt, chosen, rejected"
        assert words in check(refused, 2).stderr


@pytest.mark.parametrize("trainer", ["trl", "engine"])
def test_a_loss_that_is_a_mean_is_refused(
    home: Path, site: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    refused = run_entry(
        home, "run_sft.py", "--model", "tiny", "--dataset", "opinions", "--task", "math",
        "--train_size", 16, "--trainer", trainer, "--loss", "own_losses.averaged",
        "--do_training", collections=site / "collections.yaml",
    )  # fmt: skip
    assert "loss own_losses:averaged returned () for" in check(refused, 2).stderr
