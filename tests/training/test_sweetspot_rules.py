"""The rules of pass@k among the settings of an SFT run: their form, their hash, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.small_site import use
from tuning.flags import plain, restore
from tuning.inference.probe import sampling_of
from tuning.runs.errors import UserError
from tuning.training.config_training import SFTRunConfig, preference_config, sft_config
from tuning.training.parents import parent_of

pytestmark = pytest.mark.unit

TARGETS = {"pass_at_k_targets": (0.5, 0.3), "pass_at_k_patience": ("2:.05",)}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return use(monkeypatch, tmp_path)


def sft(dataset: str = "arith", **values: Any) -> SFTRunConfig:
    return sft_config(model="tiny", dataset=dataset, task="math", train_size=2, values=values)


def test_targets_are_crossed_from_low_to_high_beside_perplexity():
    run = sft(**TARGETS, perplexity_thresholds=(1.6, 2.0), pass_at_k=4)
    assert [rule.label for rule in run.rules] == [
        "ppl-2.0", "ppl-1.6", "pass@4-0.30", "pass@4-0.50", "pass@4-2@0.05",
    ]  # fmt: skip
    other = sft(
        pass_at_k_targets=(0.3, 0.5),
        pass_at_k_patience=("2:0.05",),
        perplexity_thresholds=(2.0, 1.6),
        pass_at_k=4,
    )
    assert other.hash == run.hash


def test_how_it_is_measured_counts_only_where_it_is():
    """A stage that was planned before there was such a part is the same run."""
    before = plain(sft())
    del before["pass_at_k"]
    assert restore(SFTRunConfig, before).hash == sft().hash
    run = sft(**TARGETS)
    changed = {
        "pass_at_k_every": 5, "pass_at_k_samples": 9, "pass_at_k_prompts": 9, "pass_at_k": 2,
        "pass_at_k_max_new_tokens": 9, "pass_at_k_temperature": 1.0, "pass_at_k_batch_size": 9,
        "pass_at_k_backend": "vllm",
    }  # fmt: skip
    hashes = {sft(**TARGETS, **{name: value}).hash for name, value in changed.items()}
    assert len(hashes | {run.hash}) == len(changed) + 1
    for name, value in (("use_persistent_vllm", False), ("vllm_gpu_memory_utilization", 0.5)):
        assert sft(**TARGETS, **{name: value}).hash == run.hash
    assert "task" in run.hashed and "task" not in sft().hashed


def test_forks_have_plain_names_unless_more_than_the_rules_is_changed():
    for values, is_plain in ((TARGETS, True), (TARGETS | {"pass_at_k_every": 7}, False)):
        parent = parent_of(sft(**values), "sft", "pass@1-0.30", 1000)
        fork = preference_config(
            model="tiny", dataset="arith", task="math", pft_method="dpo", train_size=None,
            parent=parent,
        )  # fmt: skip
        name = "tiny_sweetspot-pass@1-0.30_dpo-arith-remaining"
        assert fork.run_name.startswith(name) and (fork.run_name == name) == is_plain


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pass_at_k": 9}, "pass_at_k is 9; it must be between 1 and pass_at_k_samples, 8"),
        ({"pass_at_k": 0}, "pass_at_k is 0; it must be between 1"),
        ({"pass_at_k_targets": (0.0,)}, "shares above 0 and at most 1"),
        ({"pass_at_k_targets": (30.0,)}, "shares above 0 and at most 1"),
        ({"pass_at_k_targets": (0.3, 0.3)}, "pass_at_k_targets names 0.3 more than once"),
        ({"pass_at_k_patience": ("2",)}, "pass_at_k_patience is '2'; write EVALUATIONS:INCREASE"),
        ({"pass_at_k_every": 0}, "pass_at_k_every is 0; it must be at least 1"),
        ({"pass_at_k_temperature": 0.0}, "between 0.01 and 2"),
        ({"pass_at_k_backend": "vlm"}, "Did you mean 'vllm'"),
        ({"vllm_gpu_memory_utilization": 1.0}, "above 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values, words):
    with pytest.raises(UserError) as refused:
        sft(**(TARGETS | values))
    assert words in str(refused.value)


def test_settings_of_what_nothing_asks_for_are_refused():
    with pytest.raises(UserError, match="give --pass_at_k_targets or --pass_at_k_patience"):
        sft(pass_at_k_samples=4)


def test_problems_that_cannot_be_graded_are_refused_with_the_row(home: Path):
    rows = [{"prompt": f"{n} and 1?", "completion": f"#### {n + 1}"} for n in range(4)]
    pools = {"sft": rows[:2], "va": [rows[2] | {"answer": "3"}, rows[3]]}
    for name, content in pools.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (home.parent / f"{name}.jsonl").write_text(text)
    assert sft("mine").train_size == 2
    with pytest.raises(UserError, match=r"va\.jsonl:2 lacks answer; pass@k during SFT needs"):
        sft("mine", **TARGETS)


def test_a_measurement_is_sampled_as_the_settings_say():
    run = sft(**TARGETS, pass_at_k_samples=6, pass_at_k=3, pass_at_k_temperature=0.9)
    sampling = sampling_of(run.pass_at_k, 40)
    assert (sampling.prompts, sampling.n_samples, sampling.k_values) == (40, 6, (3,))
    assert (sampling.temperature, sampling.gpu_memory_utilization) == (0.9, 0.3)
