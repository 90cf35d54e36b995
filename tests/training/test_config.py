"""The settings of a training run: what they may be, and how the others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_configs import pt, sft
from tests.small_site import use
from tuning.runs.errors import UserError
from tuning.sweetspots.config import check_thresholds, parse_patience
from tuning.training.config_training import (
    preference_config,
    sft_config,
)

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.mark.parametrize("value", [0.0, -2.0, 1.0, 0.5, float("nan"), float("inf")])
def test_a_threshold_that_cannot_be_reached_is_refused(value):
    with pytest.raises(UserError, match=f"perplexity threshold {value} cannot be reached"):
        check_thresholds([2.0, value])
    with pytest.raises(UserError, match="cannot be reached"):
        sft(perplexity_thresholds=(value,))


def test_a_threshold_that_stands_twice_is_refused():
    with pytest.raises(UserError, match=r"perplexity_thresholds names 2\.0 more than once"):
        sft(perplexity_thresholds=(2.0, 1.6, 2.0))


@pytest.mark.parametrize(
    ("rule", "parsed"),
    [("2:0.02", (2, 0.02)), ("1:1", (1, 1.0)), ("10:.5", (10, 0.5)), ("3:1e-3", (3, 0.001))],
)
def test_patience_is_evaluations_and_decrease(rule, parsed):
    assert parse_patience(rule) == parsed


@pytest.mark.parametrize(
    "rule",
    ["", "2", "2:", ":0.1", "0:0.1", "2:0", "2:-1", "-2:0.1", "2:x", "2@0.1", "1.5:0.1", "2:1:3"],
)
def test_other_patience_is_refused_with_an_example(rule):
    with pytest.raises(UserError, match=r"write EVALUATIONS:DECREASE.* for example 2:0\.02\."):
        sft(perplexity_patience=(rule,))


@pytest.mark.parametrize("twice", [("2:0.02", "2:0.02"), ("2:0.02", "2:0.020"), ("1:1", "1:1.0")])
def test_patience_that_stands_twice_is_refused(twice):
    with pytest.raises(UserError, match="more than once"):
        sft(perplexity_patience=twice)


@pytest.mark.parametrize(
    "values",
    [
        {"num_train_epochs": 0.0},
        {"num_train_epochs": float("nan")},
        {"learning_rate": 0.0},
        {"learning_rate": -1e-5},
        {"learning_rate": float("nan")},
        {"effective_batch_size": 0},
        {"micro_batch_size": 0},
        {"micro_batch_size": -4},
        {"save_steps": 0},
        {"max_grad_norm": 0.0},
        {"warmup_ratio": 1.0},
        {"warmup_ratio": -0.1},
        {"micro_batch_size": 5},
        {"chat_template": "lama"},
        {"num_train_epochs": float("inf")},
        {"lora_r": 0},
        {"lora_alpha": 0},
        {"lora_dropout": 1.5},
        {"target_modules": ()},
        {"max_seq_length": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(values):
    for make in (sft, pt):
        with pytest.raises(UserError) as caught:
            make(**values)
        assert next(iter(values)).replace("_", " ") in str(caught.value).replace("_", " ")


@pytest.mark.parametrize(
    "values", [{"eval_steps": 0}, {"validation_size": 0}, {"validation_size": -1}], ids=str
)
def test_evaluations_that_cannot_be_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        sft(**values)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("grpo", {"num_generations": 1}),
        ("grpo", {"max_completion_length": 0}),
        ("grpo", {"grpo_temperature": 0.0}),
        ("kto", {"kl_batch_size": 3}),
        ("kto", {"kl_batch_size": 48}),
        ("kto", {"kl_batch_size": 0}),
        ("kto", {"beta": 0.0}),
        ("dpo", {"beta": -1.0}),
    ],
    ids=str,
)
def test_preference_settings_that_cannot_be_are_refused_by_name(method, values):
    with pytest.raises(UserError, match=next(iter(values))):
        pt(method, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sep_size": 0}, "sep_size is 0; it must be at least 1"),
        ({"osft_unfreeze_rank_ratio": 1.1}, "osft_unfreeze_rank_ratio is 1.1; it must be between"),
        (
            {"max_tokens_per_gpu": 1023},
            "max_tokens_per_gpu is 1023; it must be max_seq_length, 1024",
        ),
        ({"optimizer": "adamw_8bit"}, "optimizer is adamw_8bit; the engine trains with AdamW"),
        ({"lora_r": 4}, "lora_r is for --trainer trl; the engine trains all weights"),
        ({"full": True}, "full is for --trainer trl; the engine trains all weights"),
        ({"load_in_4bit": True}, "load_in_4bit is for --trainer trl; the engine opens"),
        ({"backend_train": "unsloth"}, "backend_train unsloth is for --trainer trl; the engine"),
        ({"micro_batch_size": 4}, "micro_batch_size is for --trainer trl"),
    ],
    ids=str,
)
def test_settings_that_the_engine_cannot_have_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        sft(trainer="engine", **values)


def test_settings_of_the_engine_are_refused_where_it_does_not_train():
    with pytest.raises(UserError, match="osft is for --trainer engine; the trainer is trl"):
        sft(osft=True)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (sft, {"full": True, "lora_r": 4}, "lora_r is for an adapter, and --full trains all"),
        (pt, {"full": True, "merge_parent": True}, "merge_parent is for an adapter, and --full"),
        (sft, {"full": True, "load_in_4bit": True}, "full cannot be had with --load_in_4bit"),
        (pt, {"full": True, "load_in_4bit": True}, "full cannot be had with --load_in_4bit"),
        (pt, {"merge_parent": True, "load_in_4bit": True}, "merge_parent cannot be had with"),
        (lambda **v: pt("grpo", **v), {"backend_train": "unsloth"}, "is not for grpo; give"),
        (sft, {"backend_train": "unsloth", "pass_at_k_targets": [0.5]}, "unsloth cannot sample"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_ways_to_train_that_do_not_go_together_are_refused(make, values, message):
    with pytest.raises(UserError, match=message):
        make(**values)


def test_the_engine_does_not_split_batches_by_number():
    assert sft(trainer="engine", effective_batch_size=33).training.effective_batch_size == 33
    with pytest.raises(UserError, match="micro_batch_size 32 does not divide"):
        sft(effective_batch_size=33)


@pytest.mark.parametrize(
    ("values", "schedule", "warmup"),
    [
        ({}, "cosine", 4),
        ({"warmup_ratio": 0.0}, "cosine", 0),
        ({"lr_scheduler": "linear", "warmup_ratio": 0.01}, "linear", 1),
        ({"lr_scheduler": "constant"}, "constant", 0),
        ({"lr_scheduler": "constant_with_warmup"}, "constant", 4),
    ],
    ids=str,
)
def test_the_engine_has_the_schedule_that_transformers_has(values, schedule, warmup):
    from tuning.training.engine_sft import loop_config

    config = sft(trainer="engine", weight_decay=0.3, **values)
    assert (config.steps, config.compute.max_tokens_per_gpu) == (32, 8192)
    found = loop_config(config, config.steps)
    assert (found.lr_scheduler, found.warmup_steps, found.last_lr) == (schedule, warmup, 0.0)
    assert (found.max_lr, found.weight_decay, found.adam_beta2) == (5e-3, 0.3, 0.999)


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_a_small_batch_is_no_matter_of_methods_that_are_not_used(batch):
    assert pt(effective_batch_size=batch, micro_batch_size=1).training.effective_batch_size == batch


def test_a_micro_batch_is_no_larger_than_the_batch():
    assert sft(effective_batch_size=8).compute.micro_batch_size == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tyni"}, "unknown model 'tyni'.*Did you mean 'tiny'"),
        ({"dataset": "aritt"}, "unknown dataset 'aritt'.*Did you mean 'arith'"),
        ({"task": "maths"}, "unknown task 'maths'.*Did you mean 'math'"),
        ({"task": "ifeval"}, "task 'instruction' has no dataset 'arith'"),
        ({"train_size": 0}, "train_size is 0; it must be at least 1"),
        ({"train_size": 10_001}, "the (sft|preference) pool of 'arith' has only 10000 examples"),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_is_refused(change, message):
    wanted = {"model": "tiny", "dataset": "arith", "task": "math", "train_size": 5} | change
    for make in (sft_config, lambda **w: preference_config(pft_method="dpo", **w)):
        with pytest.raises(UserError, match=message):
            make(**wanted)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown preference method 'gpo'.*Did you mean 'grpo'"):
        pt("gpo")
