"""run_autotune.py: every kind of training by its own flags, and the short forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small_site import use
from tuning import run_autotune
from tuning.autotune.config import AutotuneConfig, AutotuneRunConfig
from tuning.autotune.rows import target_of
from tuning.runs.errors import UserError
from tuning.training.config_training import sft_config

pytestmark = pytest.mark.unit
SMALL = ("--block_size", "32", "--hidden_size", "32", "--num_attention_heads", "4",
         "--num_key_value_heads", "2", "--use_mock_data", "--max_steps", "3")  # fmt: skip


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("TUNING_COLLECTIONS", raising=False)
    home = use(monkeypatch, tmp_path)
    monkeypatch.setattr(run_autotune, "_tune", told.append)
    monkeypatch.setattr("tuning.weights.base.require_base", lambda model: None)
    told.clear()
    return home


told: list[AutotuneRunConfig] = []


def asked(*words: object) -> AutotuneRunConfig:
    """The search that a command line leads to."""
    run_autotune.main([str(word) for word in words])
    return told[-1]


def test_flags_are_those_of_the_command_that_is_tuned():
    data = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", 64)
    found = asked("--for", "sft", *data, "--lora_r", 4, "--time_budget", 60)
    assert found.search == AutotuneConfig(time_budget=60.0)
    assert (found.serves, found.trained.lora.lora_r, found.processes) == ("sft", 4, 1)
    found = asked("--for=kto", *data)
    assert (found.serves, found.trained.pft_method, found.train_size) == ("pft", "kto", 64)
    found = asked("--for", "pretrain", *SMALL, "--num_gpus", 2)
    assert (found.serves, found.processes, found.trained.seq_len) == ("pretrain", 2, 32)


def test_the_short_forms_are_enough(tmp_path: Path):
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(9)]
    file = tmp_path / "my rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = asked(
        "--model-name", "tiny", "--dataset-path", file, "--target-global-batch-size", 4,
        "--num-gpus", 1, "--strategy-type", "bayesian",
    )  # fmt: skip
    assert (target_of(found), found.search.strategy) == (4, "bayesian")
    assert (found.trained.train_size, found.trained.model.model) == (8, "tiny")
    assert [row["prompt"][0]["content"] for row in found.trained.dataset.rows("sft")] == [
        row["prompt"] for row in rows[:8]
    ]
    found = asked(
        "--for", "pretrain", *SMALL, "--target-global-batch-size", 6, "--strategy-type", "grid"
    )
    assert (target_of(found), found.search.strategy) == (6, "grid")
    assert sft_config(model="tiny", dataset="arith", task="math", train_size=8).hash


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "stf"), "unknown --for 'stf'; .* Did you mean 'sft'"),
        (("--model", "tiny"), "--dataset is missing"),
        (("--model", "tiny", "--dataset", "arith", "--task", "math"), "--train_size is missing"),
        (("--model-name", "tiny", "--dataset-path", "nowhere.jsonl"), "cannot be read"),
        (("--for", "pretrain", "--use_mock_data", "--target_global_batch_size", "8"),
         "give --block_size as well"),
        (("--for", "dpo", "--model", "tiny", "--dataset", "arith", "--task", "math",
          "--train_size", "8", "--num_gpus", "3"), "32 cannot be shared by 3 processes"),
        (("--for", "pretrain", *SMALL, "--num_gpus", "0"), "num_gpus is 0"),
        (("--for", "pretrain", *SMALL, "--strategy", "guess"), "guess"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        asked(*words)
    assert "\n" not in str(error.value)
