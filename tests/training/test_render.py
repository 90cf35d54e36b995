"""Commands as they are rendered for people lead to the very configs that they were made from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.small_site import use
from tuning import config as site
from tuning import run_dpo, run_inference, run_pretrain, run_sft
from tuning.engine.run_config import PRETRAIN_PARTS, pretrain_config
from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
from tuning.flags import field_types, settable
from tuning.runs.errors import UserError
from tuning.runs.rundir import claim
from tuning.training import parents, render
from tuning.training.config_training import (
    PT_PARTS,
    SFT_PARTS,
    SFTRunConfig,
    model_config,
    preference_config,
    sft_config,
)
from tuning.weights.config import ModelLoadConfig

pytestmark = pytest.mark.unit

SEEDS = range(40)
DATA: dict[str, Any] = {"model": "tiny", "dataset": "arith", "task": "math"}
KNOWN: dict[str, tuple[Any, ...]] = {
    "chat_template": ("chatml", "llama-3.1", "tiny"),
    "optimizer": ("adamw_torch", "sgd"),
    "lr_scheduler": ("linear", "constant"),
    "perplexity_thresholds": ((2.0,), (3.25, 1.0625), (1 / 3 + 1,)),
    "perplexity_patience": (("2:0.02",), ("1:.5", "3:1e-3")),
    "pass_at_k_targets": ((0.3,), (1 / 3, 0.5)),
    "pass_at_k_patience": (("2:0.02",), ("1:.5", "3:1e-3")),
    "pass_at_k_backend": ("hf", "vllm"),
    "target_modules": (("q_proj",), ("v_proj", "o_proj")),
    "full_modules": (("embed_tokens",),),
    "k_values": ((1,), (1, 2), (2,)),
    "steps_to_profile": ((1, 2),),
    "corpus": ("arith",),
    "osft_target_patterns": (("q_proj", "k_proj"),),
    "loss": ("focal", "tuning.engine.losses:cross_entropy"),
    "max_tokens_per_gpu": (2048, 16384),
}
"""Settings that are no plain numbers or switches."""
OTHERS = {
    "data_path", "validation_data_path", "tokenizer", "use_mock_data", "osft", "training_mode",
    "max_epochs", "max_tokens", "save_best_val_loss", "validation_split",
}  # fmt: skip
"""Settings of pre-training that need files, or that decide between whole ways to train."""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return use(monkeypatch, tmp_path)


def drawn(parts: tuple[type, ...], rng: random.Random, skip: set[str] = frozenset()) -> dict:  # type: ignore[assignment]
    """Some settings of `parts` at random values; they need not go together."""
    found: dict[str, Any] = {}
    for part in parts:
        for entry in settable(part):
            if entry.name in skip or rng.random() > 0.25:
                continue
            kind, several, allowed = field_types(part, entry.name)
            if entry.name in KNOWN:
                found[entry.name] = rng.choice(KNOWN[entry.name])
            elif allowed:
                found[entry.name] = rng.choice(allowed)
            elif kind is bool:
                found[entry.name] = rng.random() < 0.5
            elif kind in (int, float) and not several:
                found[entry.name] = _number(kind, entry.default, rng)
    return found


def _number(kind: type, default: Any, rng: random.Random) -> Any:
    base = default if isinstance(default, int | float) and default else 1
    return int(base * rng.choice((1, 2, 4))) if kind is int else base * rng.uniform(0.1, 0.99)


def valid(make: Any, parts: tuple[type, ...], seed: int, skip: set[str] = frozenset()) -> Any:  # type: ignore[assignment]
    """A config of random settings that go together."""
    rng = random.Random(seed)
    for _ in range(400):
        try:
            return make(drawn(parts, rng, skip))
        except UserError:
            continue
    raise AssertionError("no settings that go together were drawn")


def flags(words: list[str]) -> list[str]:
    return [*words[1:], "--do_training", "--do_inference"]


def stand(config: SFTRunConfig) -> str:
    """The directory of a trained parent, without weights; its name."""
    with claim(site.models_dir(), config.identity()) as directory:
        directory.write_status("done", "", {"train": {"state": "done"}})
        return directory.name


@pytest.mark.parametrize("seed", SEEDS)
def test_sft(seed):
    config = valid(lambda v: sft_config(**DATA, train_size=77, values=v), SFT_PARTS, seed)
    args = run_sft.parser().parse_args(flags(render.sft_words(config)))
    assert run_sft.described(args).run == config


@pytest.mark.parametrize("start", ["base", "sft", "fork"])
@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
@pytest.mark.parametrize("seed", range(8))
def test_preference_runs(method, start, seed):
    parent = None
    if start != "base":
        of = sft_config(**DATA, train_size=90, values={"perplexity_thresholds": (2.0,)})
        spot = ("ppl-2.0", 1000) if start == "fork" else ()
        parent = parents.parent_of(of, stand(of), *spot)
    size = None if start == "fork" else 300
    config = valid(
        lambda v: preference_config(
            **DATA, pft_method=method, train_size=size, parent=parent, values=v
        ),
        PT_PARTS, seed, skip={"chat_template", "dtype", "load_in_4bit"} if parent else set(),
    )  # fmt: skip
    args = run_dpo.parser().parse_args(flags(render.preference_words(config)))
    assert run_dpo.described(args).run == config


@pytest.mark.parametrize("seed", SEEDS)
def test_pretraining(seed):
    config = valid(lambda v: pretrain_config("tiny", v), PRETRAIN_PARTS, seed, skip=OTHERS)
    args = run_pretrain.parser().parse_args(render.pretrain_words(config)[1:])
    assert run_pretrain.described(args).run == config


@pytest.mark.parametrize("which", ["base", "run", "sweetspot"])
@pytest.mark.parametrize("seed", range(10))
def test_evaluations(which, seed):
    rng = random.Random(seed)
    base, run, hash_, label = model_config("tiny", drawn((ModelLoadConfig,), rng)), None, None, None
    base = model_config("tiny", {"chat_template": base.chat_template, "dtype": base.dtype})
    if which != "base":
        of = sft_config(**DATA, train_size=90, values={"perplexity_thresholds": (2.0,)})
        base, run, hash_ = of.model, stand(of), of.hash
        label = "ppl-2.0" if which == "sweetspot" else None
    config = valid(
        lambda v: evaluation_config(
            base, dataset="arith", task="math", sampling=sampling_config("tiny", v),
            run=run, run_hash=hash_, sweetspot=label,
        ),
        (PassAtKConfig,), seed,
    )  # fmt: skip
    words = [*render.evaluation_words(config)[1:], "--do_inference"]
    assert run_inference.described(run_inference.parser().parse_args(words)).evaluation == config
