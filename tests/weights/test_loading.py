"""Artifacts, resolved without loading, and tokenizers as runs get them, from a local folder."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.small_site import use
from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs.atomic import write_json
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.runs.rundir import RunDirectory
from tuning.training.config_training import model_config
from tuning.weights.artifact import Artifact, artifact_of
from tuning.weights.loading import open_model, open_tokenizer

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


def test_an_adapter_stands_on_the_nearest_whole_weights(home, folder):
    """Those of a run that left some, its last or those of a sweetspot; else those of the base."""
    base = model(folder, chat_template="tiny")
    runs = {
        "adapter": ("adapter", None),
        "after": ("adapter", {"run_name": "adapter", "hash": "adapter"}),
        "forked": ("adapter", {"run_name": "adapter", "hash": "adapter", "sweetspot": "ppl-2.0"}),
        "whole": ("full", None),
        "after-whole": ("adapter", {"run_name": "whole", "hash": "whole"}),
        "forked-whole": ("adapter", {"run_name": "whole", "hash": "whole", "sweetspot": "ppl-2.0"}),
    }
    for name, (artifact, parent) in runs.items():
        config = {"hash": name, "format": FORMAT, "artifact": artifact, "parent": parent}
        write_json(home / "models" / name / "config.json", config)
    found = {name: artifact_of(base, RunDirectory(home / "models" / name)) for name in runs}
    under = {name: artifact.base for name, artifact in found.items()}
    whole = home / "models" / "whole"
    assert {under[name] for name in ("adapter", "after", "forked")} == {str(folder)}
    assert under["whole"] == under["after-whole"] == str(whole / "model")
    assert under["forked-whole"] == str(whole / "checkpoint-sweetspot-2.0")
    adapters = {name: artifact.adapter for name, artifact in found.items()}
    assert adapters.pop("whole") is None
    assert adapters == {name: home / "models" / name / "model" for name in adapters}
    spot = whole / "checkpoint-sweetspot-1.6"
    of_spot = artifact_of(base, RunDirectory(whole), spot)
    assert (of_spot.base, of_spot.adapter) == (str(spot), None)
    spot = home / "models" / "adapter" / "checkpoint-sweetspot-1.6"
    of_spot = artifact_of(base, RunDirectory(spot.parent), spot)
    assert (of_spot.base, of_spot.adapter) == (str(folder), spot)
    with pytest.raises(UserError, match=r"sweetspot-1\.6' holds no adapter: it has no adapter_con"):
        open_model(of_spot)


@pytest.mark.parametrize("standing", [None, "other"], ids=["missing", "retrained"])
def test_an_adapter_is_never_laid_over_other_weights_than_its_own(home, folder, standing):
    """Without its parent it is refused, unless all that it had of the parent was an adapter."""
    parent = {"run_name": "whole", "hash": "whole"}
    of_whole = {"hash": "x", "artifact": "adapter", "parent": parent, "settings": {"parent": {}}}
    of_adapter = of_whole | {"settings": {"parent": {"lora": {"r": 8}}}}
    for name, config in (("child", of_whole), ("alone", of_adapter)):
        write_json(home / "models" / name / "config.json", {"format": FORMAT} | config)
    if standing:
        other = {"format": FORMAT, "hash": standing, "artifact": "full", "parent": None}
        write_json(home / "models" / "whole" / "config.json", other)
    base = model(folder, chat_template="tiny")
    with pytest.raises(
        UserError, match="'child' lies over the weights of run 'whole', which is mi"
    ):
        artifact_of(base, RunDirectory(home / "models" / "child"))
    assert artifact_of(base, RunDirectory(home / "models" / "alone")).base == str(folder)


def test_an_artifact_says_how_it_is_read(folder):
    of_folder = model(folder, chat_template="tiny", dtype="bfloat16")
    assert artifact_of(of_folder) == Artifact(
        model=str(folder), base=str(folder), tokenizer=str(folder), chat_template="tiny",
        dtype="bfloat16",
    )  # fmt: skip
    hub = artifact_of(model_config("big"))
    assert (hub.base, hub.tokenizer, hub.adapter) == ("org/big", "org/big", None)
    assert (hub.chat_template, hub.dtype) == ("chatml", "auto")


def test_an_artifact_of_a_base_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="model 'tiny' has not been pre-trained yet"):
        artifact_of(model_config("tiny"))


def model(folder: Path, **changes):
    return replace(model_config(str(folder)), **changes)


@pytest.mark.parametrize(("template", "end"), [("tiny", "<|end|>"), ("chatml", "<|im_end|>")])
def test_the_template_decides_what_ends_a_turn(folder, template, end):
    tokenizer = open_tokenizer(artifact_of(model(folder, chat_template=template)))
    assert tokenizer.eos_token == end
    assert tokenizer.chat_template == (CHAT_TEMPLATES / f"{template}.jinja").read_text()
    assert end in tokenizer.apply_chat_template(TURN, tokenize=False)
    assert tokenizer.pad_token == "<|pad|>"


@pytest.mark.parametrize(
    ("end", "token"),
    [
        ("<|im_end|>\\n<|end|>", "<|im_end|>"),
        (" </stop> <|end|>\\n", "<|end|>"),
        ("\\n\\n<|im_end|>", "<|im_end|>"),
        ("<|eot_id|>", None),
        ("</s>\\n", None),
        ("", None),
    ],
)
def test_a_turn_ends_with_a_token_or_the_template_is_refused(folder, end, token):
    made = AutoTokenizer.from_pretrained(folder)
    made.add_tokens(["\n\n"])
    made.chat_template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '" + end + "' }}{% endif %}{% endfor %}"
    )
    made.save_pretrained(folder)
    base = artifact_of(model(folder))
    if token is not None:
        assert open_tokenizer(base).eos_token == token
        return
    with pytest.raises(UserError, match="no special token of its tokenizer: the model would not"):
        open_tokenizer(base)


def test_without_a_template_the_choices_are_named(folder):
    with pytest.raises(UserError, match=r"brings no chat template.*chatml, llama-3\.1, tiny"):
        open_tokenizer(artifact_of(model(folder)))


def test_a_folder_without_a_model_is_the_users_mistake(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty' holds no model: it has no config\.json"):
        model(empty)
    (empty / "config.json").write_text("{}")
    for load in (open_tokenizer, open_model):
        with pytest.raises(UserError, match="empty' cannot be loaded"):
            load(artifact_of(model(empty, chat_template="tiny")))


def test_a_model_is_not_computed_by_the_attention_of_cudnn(home, folder):
    torch.backends.cuda.enable_cudnn_sdp(True)
    with pytest.raises(UserError):  # it has no weights
        open_model(artifact_of(model(folder, chat_template="tiny")))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
