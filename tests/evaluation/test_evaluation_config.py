"""How a model is sampled: defaults, names and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.small_site import COLLECTIONS, use
from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
from tuning.runs.errors import UserError
from tuning.training.config_training import model_config

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def config(**values):
    sampling = sampling_config("tiny", values.pop("sampling", {}))
    wanted = {"run": "run", "run_hash": "a", "dataset": "arith", "task": "gsm8k"} | values
    return evaluation_config(model_config("tiny"), sampling=sampling, **wanted)


def test_the_model_overrides_the_defaults_and_flags_both():
    assert sampling_config("big") == PassAtKConfig()
    assert sampling_config("tiny") == PassAtKConfig(prompts=50, n_samples=4, k_values=(1, 2, 4))
    assert sampling_config("tiny", {"prompts": 7}).prompts == 7


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": 0},
        {"n_samples": 0},
        {"max_new_tokens": 0},
        {"batch_size": -1},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"k_values": ()},
        {"k_values": (0,)},
        {"k_values": (1, 5)},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_refused_by_name(change):
    with pytest.raises(UserError) as caught:
        sampling_config("tiny", change)
    assert next(iter(change)) in str(caught.value)


def test_an_unknown_setting_in_yaml_is_named(monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("{prompts: 50", "{prompt: 50"))
    with pytest.raises(UserError, match=r"tiny: settings: evaluation: 'prompt'.*'prompts'"):
        sampling_config("tiny")


def test_the_default_sampling_has_the_plain_name():
    assert config().run_name == "run"
    assert config().task == "math"
    other = config(sampling={"temperature": 1.0})
    assert other.run_name == f"run_eval-{other.hash[:8]}"


@pytest.mark.parametrize(
    "change",
    [
        {"run_hash": "b"},
        {"sampling": {"prompts": 40}},
        {"sampling": {"n_samples": 8}},
        {"sampling": {"sampling_seed": 1}},
        {"sampling": {"batch_size": 3}},
        {"sampling": {"top_k": 3}},
    ],
    ids=str,
)
def test_what_changes_the_answers_changes_the_hash(change):
    assert config(**change).hash != config().hash


def test_names_do_not_change_the_hash():
    assert config(run="other").hash == config().hash
    assert replace(config(), base=model_config("big")).hash == config().hash


def test_the_identity_names_its_parent():
    identity = config().identity(parent=config().evaluates)
    assert (identity.run_name, identity.kind) == ("run", "evaluation")
    assert identity.parent == {"run_name": "run", "hash": "a"}
    assert identity.artifact is None
