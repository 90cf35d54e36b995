"""Model folders that are not what they are called: one line, the same on every path."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.small_site import use
from tuning import run_inference, run_pretrain, run_sft
from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs.errors import UserError
from tuning.training.config_training import model_config
from tuning.weights.artifact import artifact_of
from tuning.weights.config import LoraConfig
from tuning.weights.files import require_whole
from tuning.weights.loading import open_model, open_tokenizer, peft_config, save
from tuning.weights.reading import read

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=128, vocab_size=300, num_layer=2, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32,
)  # fmt: skip
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 4096\n"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small model with its tokenizer."""
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    tokenizer = train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template)
    made = build(SHAPE, seed=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    folder = tmp_path_factory.mktemp("whole") / "model"
    save(made, tokenizer, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "mine")


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = {
    "pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), "git lfs pull"),
    "tokenizer-pointer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "pointer of git"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "safetensors is empty"),
    "cut": (lambda f: cut(f / "model.safetensors", 0.9), "model.safetensors is cut: it has"),
    "cut-header": (lambda f: cut(f / "model.safetensors", 0.01), "safetensors is cut"),
    "no-header": (lambda f: (f / "model.safetensors").write_text("x" * 99), "is cut, or no safe"),
    "odd-header": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"[]"),
        "has a damaged header",
    ),
    "cut-config": (lambda f: cut(f / "config.json", 0.5), "config.json is not valid JSON"),
    "config-list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "cut-tokenizer": (lambda f: cut(f / "tokenizer.json", 0.5), "tokenizer.json is not valid"),
    "no-config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no-shard": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-1-of-2.safetensors"}}'
        ),
        "model-1-of-2.safetensors is missing",
    ),
    "no-link": (
        lambda f: replaced(f).symlink_to(f / "blob"),
        "pytorch_model.bin is a link to nothing",
    ),
    "cut-bin": (lambda f: replaced(f).write_bytes(b"PK\x03\x04xx"), "bin is cut"),
}


def replaced(folder: Path) -> Path:
    """The file of weights in the older format, and none in the newer."""
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def commands(folder: Path) -> list:
    """What trains on a model or samples it, by TRL and by the engine."""
    data = ["--model", str(folder), "--dataset", "arith", "--task", "math"]
    sft = [*data, "--train_size", "8", "--do_training", "--max_seq_length", "128"]
    engine = ["--model_name_or_path", str(folder), "--use_mock_data", "--max_steps", "1",
              "--block_size", "16", "--total_batch_size", "16", "--exp_name", "x"]  # fmt: skip
    return [
        lambda: run_sft.main(sft),
        lambda: run_sft.main([*sft, "--trainer", "engine"]),
        lambda: run_inference.main([*data, "--do_inference"]),
        lambda: run_pretrain.main(engine),
    ]


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_one_line_before_anything_runs(home, folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    for run in commands(folder):
        with pytest.raises(UserError) as caught:
            run()
        assert message in str(caught.value) and str(folder) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert list(home.iterdir()) == []


def test_what_is_whole_is_read(folder):
    require_whole(folder)
    artifact = artifact_of(model_config(str(folder)))
    open_tokenizer(artifact)
    assert open_model(artifact).config.vocab_size == 300


def test_files_that_were_damaged_since_the_run_was_planned(folder):
    config = model_config(str(folder))
    cut(folder / "model.safetensors", 0.9)
    with pytest.raises(UserError, match="is cut: it has"):
        artifact_of(config)


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        ({"hidden_size": 32}, "cannot be loaded: RuntimeError"),
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            r"11 are missing \(model\.layers\.2",
        ),
        ({"model_type": "nothing"}, "cannot be loaded: The checkpoint you are trying to load"),
        ({"hidden_size": "wide"}, "cannot be loaded: "),
        ({"num_attention_heads": 0}, "cannot be loaded: "),
        ({"architectures": 3, "vocab_size": -1}, "cannot be loaded: "),
    ],
)
def test_weights_of_another_shape_are_one_line(folder, change_, message):
    change(folder / "config.json", **change_)
    with pytest.raises(UserError, match=message) as caught:
        read(str(folder), torch.float32)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_larger_than_the_embedding_is_refused(whole, tmp_path):
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    larger = train_tokenizer(islice(arith.pretraining_documents(0), 200), 320, template)
    folder = shutil.copytree(whole, tmp_path / "larger")
    larger.save_pretrained(folder)
    with pytest.raises(UserError, match=r"has the token id 319 and model '.*' the ids 0 to 299"):
        open_tokenizer(artifact_of(model_config(str(folder))))


def test_special_tokens_that_no_turn_has_may_lie_beyond_the_embedding(folder):
    artifact = artifact_of(model_config(str(folder)))
    tokenizer = open_tokenizer(artifact)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(folder)
    artifact = artifact_of(model_config(str(folder)))
    assert len(open_tokenizer(artifact)) > 300
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="has the token id 301"):
        open_tokenizer(artifact_of(model_config(str(folder))))


@pytest.mark.parametrize("how", ["pointer", "cut", "config", "other"])
def test_a_damaged_adapter_is_one_line(whole, tmp_path, how):
    from dataclasses import replace

    from peft import get_peft_model

    base = artifact_of(model_config(str(whole)))
    adapter = tmp_path / "adapter"
    get_peft_model(open_model(base), peft_config(LoraConfig(lora_r=2))).save_pretrained(adapter)
    weights, settings = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    assert open_model(replace(base, adapter=adapter)) is not None
    if how == "pointer":
        weights.write_text(POINTER)
    elif how == "cut":
        cut(weights, 0.5)
    elif how == "config":
        cut(settings, 0.5)
    else:
        change(settings, r=4)
    with pytest.raises(UserError, match="adapter' cannot be loaded: ") as caught:
        open_model(replace(base, adapter=adapter))
    assert len(str(caught.value).splitlines()) == 1


def beside(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin.index.json", b'{"weight_map": {"a": "pytorch_model-00001-of-2.bin"}}'),
        ("pytorch_model.bin", POINTER.encode()),
        ("consolidated.safetensors", POINTER.encode()),
        ("optimizer.bin", b""),
    ],
)
def test_files_of_another_format_beside_the_weights_do_no_harm(folder, name, content):
    beside(folder, name, content)
    require_whole(folder)


def test_a_folder_without_a_tokenizer_has_none(home, folder):
    """A library makes an empty one of no files."""
    for file in folder.glob("*token*"):
        file.unlink()
    base = replace(model_config(str(folder)), chat_template="tiny")
    with pytest.raises(UserError, match=r"has no tokenizer that reads text|cannot be loaded"):
        open_tokenizer(artifact_of(base))


def test_weights_that_the_config_does_not_ask_for_are_not_left_out(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its weights have layers that its config"):
        read(str(folder), torch.float32)
