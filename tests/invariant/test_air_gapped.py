"""What `tuning prefetch` fetched where there is a network is all that an experiment needs where
there is none: dataset and model come from a hub, and what docs/data.md names is copied.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pandas
import pytest

from tests.conftest import check
from tests.launchers.small_hub import COMMIT, Repository, SmallHub
from tuning.config import CHECKOUT
from tuning.data import arith
from tuning.engine.tokenizer import train_tokenizer

COLLECTIONS = """
tasks: {math: {datasets: [own, gone]}}
datasets:
  own:
    loader: published
    sft: org/chats
    preference: org/feedback:prefs
    test: org/chats/main:test
    system_message: "End with #### NUMBER."
  gone: {loader: published, sft: org/none}
sft_ratio: [0.5]
pft_methods: [kto]
perplexity_thresholds: [2.0]
models:
  big:
    hub: org/big
    chat_template: tiny
    settings:
      sft: {effective_batch_size: 8, micro_batch_size: 8, max_seq_length: 128, lora_r: 4}
      kto: {effective_batch_size: 8, kl_batch_size: 8, max_seq_length: 128, lora_r: 4}
      evaluation: {prompts: 2, n_samples: 2, k_values: [1, 2], max_new_tokens: 4, batch_size: 4}
"""
CARD = b"""---
configs:
- config_name: main
  default: true
  data_files: [{split: train, path: train.parquet}, {split: test, path: test.parquet}]
---
"""
WANTED = (
    "--model", "big", "--task", "math", "--total_data", "32", "--sft_data", "8",
    "--perplexity_thresholds", "2.0", "--do_sft", "--do_dpo", "--pft_method", "kto",
    "--do_inference", "--do_evaluation",
)  # fmt: skip


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


def asked(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {n} + 1?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> SmallHub:
    """A model of two layers, chats with a test set, and unpaired feedback."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("repository")
    shape = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    template = (CHECKOUT / "tuning/data/chat_templates/tiny.jinja").read_text()
    train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template).save_pretrained(
        folder
    )
    made = SmallHub("org/big", folder)
    chats, test = (
        [{"messages": asked(n) + answer(f"#### {n + 1}"), "answer": str(n + 1)} for n in numbers]
        for numbers in (range(90), range(50, 55))
    )
    feedback = [
        {"prompt": f"What is {n // 2} + 1?", "completion": f"#### {n}", "label": n % 2 == 0}
        for n in range(200)
    ]
    made.datasets = {
        "org/chats": Repository(
            {"README.md": CARD, "train.parquet": parquet(chats), "test.parquet": parquet(test)}
        ),
        "org/feedback": Repository({"data/prefs-00000-of-00001.parquet": parquet(feedback)}),
    }
    return made


def tuning(site: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command with the two folders of a site, and no other cache."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS"))}
    environment |= {
        "HF_HOME": str(site / "hf"), "TUNING_HOME": str(site / "home"), "OMP_NUM_THREADS": "1",
        "TUNING_COLLECTIONS": str(site / "collections.yaml"), "PYTHONPATH": str(CHECKOUT),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-P", str(CHECKOUT / "tuning/cli.py"), *words],
        env=environment | more, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_what_was_fetched_is_all_that_an_experiment_needs(hub: SmallHub, tmp_path: Path) -> None:
    online, offline = tmp_path / "online", tmp_path / "offline"
    online.mkdir()
    (online / "collections.yaml").write_text(COLLECTIONS)
    wanted = (*WANTED, "--dataset", "own")
    refused = tuning(online, "submit", *wanted, "--dry_run", "--launcher", "local")
    assert "error: dataset 'own' is not here yet" in check(refused, 2).stderr
    with hub.serving() as endpoint:
        done = check(tuning(online, "prefetch", *wanted, HF_ENDPOINT=endpoint))
        lost = tuning(online, "prefetch", *WANTED, "--dataset", "gone", HF_ENDPOINT=endpoint)
    assert "org/big: fetched" in done.stdout
    (line,) = [text for text in check(lost, 2).stderr.splitlines() if text.startswith("error: ")]
    assert line.startswith(f"error: 'org/none' is not at {endpoint} (HTTP 404)")
    made = online / "home/data/datasets"
    assert not list((made / "gone").glob("*.json*"))
    manifest = json.loads((made / "own/manifest.json").read_text())
    assert {about["version"] for about in manifest["sources"].values()} == {COMMIT}
    assert manifest["dropped"]["sft rows of test prompts"] == 5

    for part in ("home/data", "hf/hub"):
        shutil.copytree(online / part, offline / part, symlinks=True)
    shutil.copy(online / "collections.yaml", offline)
    shutil.rmtree(online)
    asked_before = len(hub.requests)
    with hub.serving() as endpoint:
        run = tuning(offline, "submit", *wanted, "--launcher", "local", HF_ENDPOINT=endpoint)
    assert "big_sft-own-32" in check(run).stdout
    assert hub.requests[asked_before:] == []
    results = [
        json.loads((path / "result.json").read_text())
        for path in (offline / "home/models").iterdir()
        if "kto" in path.name
    ]
    assert results and all(one["data_used"] == one["train_size"] for one in results)
