"""Tokenizers as runs get them, from a local folder."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs.errors import UserError
from tuning.training.config_training import model_config
from tuning.training.models import load_base, load_tokenizer

pytestmark = pytest.mark.unit

TURN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tokenizer as a base model of the hub has it: no template, no padding, its own end."""
    made = train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, "")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = None
    made.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen3"}')
    return tmp_path / "model"


def model(folder: Path, **changes):
    return replace(model_config(str(folder)), **changes)


@pytest.mark.parametrize(("template", "end"), [("tiny", "<|end|>"), ("chatml", "<|im_end|>")])
def test_the_template_decides_what_ends_a_turn(folder, template, end):
    tokenizer = load_tokenizer(model(folder, chat_template=template))
    assert tokenizer.eos_token == end
    assert tokenizer.chat_template == (CHAT_TEMPLATES / f"{template}.jinja").read_text()
    assert end in tokenizer.apply_chat_template(TURN, tokenize=False)
    assert tokenizer.pad_token == "<|pad|>"


def test_without_a_template_the_choices_are_named(folder):
    with pytest.raises(UserError, match=r"brings no chat template.*chatml, llama-3\.1, tiny"):
        load_tokenizer(model(folder))


def test_a_folder_without_a_model_is_the_users_mistake(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty' holds no model: it has no config\.json"):
        model(empty)
    (empty / "config.json").write_text("{}")
    for load in (load_tokenizer, load_base):
        with pytest.raises(UserError, match="empty' cannot be loaded"):
            load(model(empty, chat_template="tiny"))
