"""How many parameters a model and its adapter have, beside what peft makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning.engine.run_config import preset, shape_of
from tuning.flags import build
from tuning.runs import atomic
from tuning.weights.config import LoraConfig
from tuning.weights.shape import FLOAT32, adapter_of, in_subspaces, parameters_of, read_shape

pytestmark = pytest.mark.unit

LLAMA = {
    "model_type": "llama", "vocab_size": 1000, "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "tie_word_embeddings": False,
}  # fmt: skip


def model_folder(folder: Path, **changes) -> Path:
    atomic.write_json(folder / "config.json", LLAMA | changes)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("full", [(), ("embed_tokens", "lm_head"), ("lm_head",), ("v_proj",)])
def test_an_adapter_has_the_parameters_that_peft_gives_it(tmp_path, tied, full):
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuning.weights import loading

    folder = model_folder(tmp_path / "m", tie_word_embeddings=tied)
    shape = read_shape(folder)
    assert shape is not None
    base = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    assert shape.parameters == sum(p.numel() for p in base.parameters())
    lora = LoraConfig(lora_r=4, target_modules=("q_proj", "k_proj", "down_proj"), full_modules=full)
    made = adapter_of(shape, lora)
    adapted = _adapted(base.to(torch.bfloat16), lora)
    assert made.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    loading.write(adapted, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert made.saved == sum(tensor.numel() for tensor in saved.values())
    assert {tensor.element_size() for tensor in saved.values()} == {FLOAT32}


def _adapted(base, lora):
    from peft import get_peft_model

    from tuning.training import trainers
    from tuning.weights import loading

    adapted = get_peft_model(base, loading.peft_config(lora))
    trainers.in_float32(adapted)
    return adapted


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.99, 1.0])
@pytest.mark.parametrize("patterns", [(), ("q_proj", "down")])
def test_subspaces_have_the_parameters_that_the_engine_gives_them(tmp_path, ratio, patterns):
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuning.engine import osft

    folder = model_folder(tmp_path / "m")
    shape = read_shape(folder)
    assert shape is not None
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    osft.decompose(model, ratio, patterns or None)
    parts = list(model.parameters())
    found = in_subspaces(shape, ratio, patterns)
    assert found.saved == sum(p.numel() for p in parts)
    assert found.trained == sum(p.numel() for p in parts if p.requires_grad)


def test_modules_are_counted_by_their_last_word(tmp_path):
    shape = read_shape(model_folder(tmp_path, tie_word_embeddings=True))
    assert shape is not None
    assert parameters_of(shape, ["model.embed_tokens"]) == 64_000
    assert parameters_of(shape, ["embed_tokens", "lm_head"]) == 64_000, "tied: one parameter"
    assert parameters_of(shape, ["mlp.down_proj", "score"]) == 2 * 128 * 64


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gpt-0.25b", 0.23), ("gpt-1b", 1.54), ("gpt-3b", 2.97), ("gpt-7b", 7.86)],
)
def test_a_model_of_settings_has_the_size_that_its_preset_says(name, billions):
    from tuning.engine.config import ModelConfig

    shape = shape_of(build(ModelConfig, {"vocab_size": 50_304} | preset(name)))
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "mixtral"}, {"hidden_size": None}, {"vocab_size": "many"}, {"model_type": []}],
)
def test_an_unknown_architecture_is_not_guessed(tmp_path, changes):
    assert read_shape(model_folder(tmp_path / "m", **changes)) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_config_is_not_guessed(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert read_shape(tmp_path) is None
