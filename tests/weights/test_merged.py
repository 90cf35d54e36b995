"""Adapters are merged once, by what they are made of, and few of them stay."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.small_site import use
from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.engine.tokenizer import train_tokenizer
from tuning.manage.clean import DAY, removable, remove
from tuning.runs.lock import Lock
from tuning.weights import loading, merged
from tuning.weights.artifact import Artifact
from tuning.weights.config import LoraConfig

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=64, vocab_size=300, num_layer=1, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model, and adapters over it that change what it computes."""
    from peft import get_peft_model

    root = tmp_path_factory.mktemp("models")
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    tokenizer = train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    loading.save(build(SHAPE, seed=0, **ends), tokenizer, root / "base")
    for number in range(5):
        torch.manual_seed(number)
        model = get_peft_model(build(SHAPE, seed=0, **ends), loading.peft_config(LoraConfig()))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        loading.save(model, tokenizer, root / str(number))
    return root


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def artifact(folder: Path, number: int) -> Artifact:
    base = str(folder / "base")
    return Artifact(
        model="m", base=base, tokenizer=base, dtype="float32", adapter=folder / str(number)
    )


def test_it_computes_what_the_adapter_computes_and_is_made_once(home, folder):
    source = artifact(folder, 0)
    found = merged.merged(source)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, base, got = (
            loading.open_model(one)(ids).logits
            for one in (source, replace(source, adapter=None), found)
        )
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, base, atol=1e-2)
    stamp = (Path(found.base) / "model.safetensors").stat().st_mtime_ns
    assert merged.merged(source) == found
    assert (Path(found.base) / "model.safetensors").stat().st_mtime_ns == stamp
    assert merged.merged(replace(source, dtype="bfloat16")).base != found.base
    assert merged.merged(replace(source, dtype="auto")).base == found.base  # on a CPU


def test_the_last_ones_stay_and_those_in_use(home, folder):
    made = [Path(merged.merged(artifact(folder, number)).base) for number in range(4)]
    old = time.time() - 2 * merged.RECENT
    for place, path in enumerate(made):
        os.utime(path, (old + place, old + place))
    with Lock(made[0].parent).holding():
        merged.merged(artifact(folder, 4))
    assert [path.is_dir() for path in made] == [True, False, True, True]
    merged.merged(artifact(folder, 1))
    assert [path.is_dir() for path in made] == [False, True, False, True]


def test_clean_removes_what_nobody_used_for_a_day(home, folder):
    paths = [Path(merged.merged(artifact(folder, number)).base) for number in range(2)]
    old = time.time() - DAY - 60
    os.utime(paths[0], (old, old))
    assert remove(removable(home, set())) > 0
    assert [path.is_dir() for path in paths] == [False, True]
