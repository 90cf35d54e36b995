"""What a run stands on, and the commands that make what is missing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.run_configs import sft
from tests.small_site import COLLECTIONS, use
from tuning import config as site
from tuning import run_dpo, run_sft
from tuning.engine.run_config import pretrain_config
from tuning.flags import given
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory, claim
from tuning.training import parents
from tuning.training.config_training import (
    PT_PARTS,
    SFT_PARTS,
    PTRunConfig,
    SFTRunConfig,
    model_config,
    preference_config,
    sft_config,
)
from tuning.training.render import preference_words, sft_command, sft_words
from tuning.weights.base import base_directory, require_base

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def stand(config, name: str | None = None, *, done: bool = True) -> RunDirectory:
    """A directory as the run leaves it, without weights."""
    identity = config.identity() if name is None else config.identity(name, None)
    with claim(site.models_dir(), identity) as directory:
        if done:
            directory.write_status("done", "", {"train": {"state": "done"}})
        return directory


def read_sft(flags: list[str]) -> SFTRunConfig:
    """The config that run_sft.py makes of a command line."""
    args = run_sft.parser().parse_args(flags)
    return sft_config(
        model=args.model, dataset=args.dataset, task=args.task, train_size=args.train_size,
        values=given(args, SFT_PARTS),
    )  # fmt: skip


def read_preference(flags: list[str]) -> PTRunConfig:
    """The config that run_dpo.py makes of a command line."""
    args = run_dpo.parser().parse_args(flags)
    parent = None
    if args.parent_run:
        config, directory = parents.named_sft(args.parent_run)
        parent = parents.parent_of(config, directory.name, args.sweetspot, args.total_data)
    return preference_config(
        model=args.model, dataset=args.dataset, task=args.task, pft_method=args.pft_method,
        train_size=args.train_size, parent=parent, values=given(args, PT_PARTS),
    )  # fmt: skip


@pytest.mark.parametrize("model", ["tiny", "big", "org/name"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"learning_rate": 1 / 3, "seed": 7, "micro_batch_size": 8, "save_steps": 3},
        {"perplexity_thresholds": (1.6, 2.0), "perplexity_patience": ("2:0.02",)},
        {"early_stop": False, "lora_dropout": 0.1, "target_modules": ("q_proj", "v_proj")},
        {"chat_template": "llama-3.1", "dtype": "bfloat16", "max_seq_length": 99},
        {"full_modules": ("embed_tokens",)},
        {"trainer": "engine"},
        {"trainer": "engine", "sep_size": 2, "use_compile": True, "max_tokens_per_gpu": 4096},
        {"trainer": "engine", "osft": True, "osft_unfreeze_rank_ratio": 0.1},
        {"trainer": "engine", "effective_batch_size": 48, "learning_rate": 1e-3},
    ],
    ids=str,
)
def test_the_flags_of_an_sft_run_make_it_again(model, values):
    config = sft(model, **values)
    again = read_sft(sft_words(config)[1:])
    assert again == config
    assert again.run_name == config.run_name
    command = shlex.split(sft_command(config))
    assert command[:2] == ["python", "tuning/run_sft.py"]
    assert command[-1] == "--do_training"


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
@pytest.mark.parametrize("start", ["base", "sft", "fork"])
@pytest.mark.parametrize("values", [{}, {"seed": 7, "merge_parent": False}], ids=str)
def test_the_flags_of_a_preference_run_make_it_again(method, start, values):
    if values:
        values = values | {"grpo_beta" if method == "grpo" else "beta": 0.3}
    of = sft(perplexity_thresholds=(2.0,))
    directory = stand(of, of.run_name)
    spot = ("ppl-2.0", 1000) if start == "fork" else (None, None)
    parent = None if start == "base" else parents.parent_of(of, directory.name, *spot)
    config = preference_config(
        model="tiny", dataset="arith", task="gsm8k", pft_method=method, parent=parent,
        train_size=None if start == "fork" else 300, values=values,
    )  # fmt: skip
    again = read_preference(preference_words(config)[1:])
    assert again == config
    assert (again.hash, again.run_name) == (config.hash, config.run_name)


@pytest.mark.parametrize("default", ["trl", "engine"])
def test_flags_name_the_trainer_where_it_is_not_the_models(monkeypatch, tmp_path, default):
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("sft: {", f"sft: {{trainer: {default}, "))
    for trainer in ("trl", "engine"):
        config = sft(trainer=trainer)
        flags = sft_words(config)[1:]
        assert read_sft(flags) == config
        assert ("--trainer" in flags) == (trainer != default)
        assert not [word for word in flags if word.startswith("--lora")]


def test_a_fork_of_a_whole_model_comes_back_from_its_flags():
    of = sft(trainer="engine", perplexity_thresholds=(2.0,))
    directory = stand(of, of.run_name)
    parent = parents.parent_of(of, directory.name, "ppl-2.0", 1000)
    config = preference_config(
        model="tiny", dataset="arith", task="math", pft_method="dpo", train_size=None,
        parent=parent, values={"lora_r": 4},
    )  # fmt: skip
    again = read_preference(preference_words(config)[1:])
    assert again == config and again.hash == config.hash


def test_a_named_parent_comes_back_as_it_was():
    config = sft(perplexity_thresholds=(2.0,), micro_batch_size=8)
    stand(config, config.run_name)
    found, directory = parents.named_sft(config.run_name)
    assert found == config
    assert found.hash == directory.hash == config.hash


def test_a_parent_whose_settings_are_not_those_it_was_trained_with_is_refused():
    config = sft()
    directory = stand(config, config.run_name)
    held = directory.config
    held["settings"]["training"]["learning_rate"] = 0.1
    atomic.write_json(directory.path / "config.json", held)
    with pytest.raises(UserError, match=r"config\.json was edited, or another version"):
        parents.named_sft(config.run_name)


def test_an_unknown_parent_names_the_nearest(home):
    (home / "models" / "theirs").mkdir(parents=True)
    (home / "models" / "theirs" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=f"there is no run 'x' under {home}/models"):
        parents.named_sft("x")
    stand(sft(), sft().run_name)
    with pytest.raises(UserError, match="Did you mean 'tiny_sft-arith-500'"):
        parents.named_sft("tiny_sft-arith-50")
    stand(pretrain_config("tiny"))
    with pytest.raises(UserError, match="'tiny' is a pretrain run; this takes a run of kind sft"):
        parents.named_sft("tiny")


def test_a_parent_that_is_not_trained_gives_the_command_that_trains_it():
    config = sft(learning_rate=1e-3)
    for made in (False, True):
        if made:
            stand(config, config.run_name, done=False)
        with pytest.raises(UserError) as caught:
            parents.sft_parent(config)
        told, _, command = str(caught.value).partition("make it with: ")
        assert told == f"run '{config.run_name}' is not trained yet; "
        assert read_sft(shlex.split(command)[2:]) == config
    stand(config, config.run_name)
    assert parents.sft_parent(config).name == config.run_name


def test_a_base_that_is_not_pretrained_gives_the_command_too():
    model = model_config("tiny")
    with pytest.raises(UserError, match=r"with: python tuning/run_pretrain\.py --model tiny$"):
        require_base(model)
    directory = stand(pretrain_config("tiny"))
    require_base(model)
    assert base_directory(model).path == directory.path
    require_base(model_config("big"))
    assert base_directory(model_config("big")) is None


def test_a_parent_on_another_base_is_refused(monkeypatch, tmp_path):
    config = sft()
    parents.require_same_base(config, model_config("tiny"))
    with pytest.raises(UserError, match=r"another base than --model big is now: .*source"):
        parents.require_same_base(config, model_config("big"))
    with pytest.raises(UserError, match="chat_template: tiny -> chatml"):
        parents.require_same_base(config, model_config("tiny", {"chat_template": "chatml"}))
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("max_steps: 7", "max_steps: 8"))
    with pytest.raises(UserError, match="base_hash"):
        parents.require_same_base(config, model_config("tiny"))
