"""Flags and command lines that are derived from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from tuning.data.config import DatasetConfig
from tuning.evaluation.config import PassAtKConfig
from tuning.flags import (
    Parser,
    add_flags,
    build,
    coerce,
    command_line,
    documentation,
    given,
    plain,
    restore,
)
from tuning.runs.errors import UserError
from tuning.sweetspots.config import PerplexityConfig
from tuning.training.config import DPOTrainingConfig, TrainingArgumentsConfig
from tuning.training.config_training import Parent, PTRunConfig
from tuning.weights.config import LoraConfig, ModelLoadConfig

pytestmark = pytest.mark.unit


@dataclass(frozen=True, kw_only=True)
class Base:
    """A part that another extends."""

    steps: int = 10
    """How many; 10%
    of them."""
    rate: float = 0.1
    """How fast."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """Every kind of field."""

    rate: float = 0.2
    """Faster."""
    flag: bool = False
    """On or off."""
    name: str | None = None
    """Of the thing."""
    mode: Literal["auto", "manual"] = "auto"
    """One of two."""
    values: tuple[float, ...] = (1.0, 2.5)
    """Several."""
    words: tuple[str, ...] = ()
    """Several words."""
    inside: str = field(default="x", metadata={"flag": False})
    """Not for people."""
    without: int = 0


def parse(*line: str, config: type = Config, prefix: str = "") -> dict:
    parser = Parser(prog="test")
    add_flags(parser, config, prefix=prefix)
    return given(parser.parse_args(line), (config,), prefix)


def test_help_comes_from_the_lines_under_the_fields(capsys):
    assert documentation(Config)["steps"] == "How many; 10% of them."
    assert documentation(Config)["rate"] == "Faster."
    assert "without" not in documentation(Config)
    parser = Parser(prog="test")
    add_flags(parser, Config, title="the thing")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the thing:" in shown
    assert "--steps STEPS How many; 10% of them. (default: 10)" in shown
    assert "--rate RATE Faster. (default: 0.2)" in shown
    assert "--mode auto|manual One of two. (default: auto)" in shown
    assert "Several. (default: 1.0 2.5)" in shown
    assert "--inside" not in shown


def test_nothing_given_is_nothing():
    assert parse() == {}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--steps 3", {"steps": 3}),
        ("--steps 1e3", {"steps": 1000}),
        ("--steps -2", {"steps": -2}),
        ("--rate 5e-5", {"rate": 5e-5}),
        ("--rate=3", {"rate": 3.0}),
        ("--flag true", {"flag": True}),
        ("--flag No", {"flag": False}),
        ("--name a-b_c", {"name": "a-b_c"}),
        ("--mode manual", {"mode": "manual"}),
        ("--values 3", {"values": (3.0,)}),
        ("--values 3 2.5 1", {"values": (3.0, 2.5, 1.0)}),
        ("--words 2:0.02 b", {"words": ("2:0.02", "b")}),
        ("--steps 1 --steps 2", {"steps": 2}),
    ],
)
def test_values_have_the_types_of_their_fields(line, value):
    found = parse(*line.split())
    assert found == value
    assert [type(v) for v in found.values()] == [type(v) for v in value.values()]


def test_a_large_whole_number_stays_as_it_is():
    assert parse("--steps", str(2**53 + 1)) == {"steps": 2**53 + 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps x", "--steps is 'x'; it must be a whole number."),
        ("--steps 1.5", "--steps is '1.5'; it must be a whole number."),
        ("--steps inf", "--steps is 'inf'; it must be a whole number."),
        ("--steps nan", "--steps is 'nan'; it must be a whole number."),
        ("--rate fast", "--rate is 'fast'; it must be a number."),
        ("--values 1 x", "--values is 'x'; it must be a number."),
        ("--flag perhaps", "--flag is 'perhaps'; it must be true or false."),
        ("--mode manuel", "unknown --mode 'manuel'; choose from: auto, manual. "
                          "Did you mean 'manual'?"),
        ("--steps", "argument --steps: expected one argument. See --help."),
        ("--stepps 3", "Did you mean '--steps'?"),
        ("--stepps=3", "Did you mean '--steps'?"),
        ("--step 3", "Did you mean '--steps'?"),
        ("stray", "unrecognized arguments: stray. See --help."),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line(line, message):
    with pytest.raises(UserError) as caught:
        parse(*line.split())
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--sft_a_rate", "--sft-a-rate", "--sft-a_rate"])
@pytest.mark.parametrize("form", ["{} 0-1_2", "{}=0-1_2"])
def test_dashes_and_underscores_are_alike_in_names_only(flag, form):
    @dataclass(frozen=True, kw_only=True)
    class Dashed:
        a_rate: str = ""

    assert parse(*form.format(flag).split(), config=Dashed, prefix="sft_") == {"a_rate": "0-1_2"}


def test_two_prefixes_keep_the_same_fields_apart():
    parser = Parser(prog="test")
    for prefix in ("sft_", "pft_"):
        add_flags(parser, Base, prefix=prefix)
    args = parser.parse_args(["--sft_rate", "1", "--pft-rate", "2"])
    assert given(args, (Base,), "sft_") == {"rate": 1.0}
    assert given(args, (Base,), "pft_") == {"rate": 2.0}
    with pytest.raises(UserError, match=r"--pft_rate is 'x'"):
        given(parser.parse_args(["--pft_rate", "x"]), (Base,), "pft_")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(steps=3, rate=1e-7, flag=True, name="it is", mode="manual"),
        Config(values=(1.0, 1 / 3), words=("2:0.02", "a b")),
        PerplexityConfig(perplexity_thresholds=(2.0, 1.25), perplexity_patience=("2:0.02",)),
        PerplexityConfig(early_stop=False, eval_steps=1),
        LoraConfig(target_modules=("q_proj",), full_modules=("lm_head",), lora_dropout=0.05),
        PassAtKConfig(k_values=(1, 2, 4), temperature=1.0),
        TrainingArgumentsConfig(learning_rate=3.3e-5, num_train_epochs=0.5, seed=2**31),
    ],
)
def test_a_command_line_leads_back_to_the_config(config):
    line = command_line([(config, type(config)())])
    assert all(isinstance(word, str) for word in line)
    again = build(type(config), parse(*line, config=type(config)))
    assert again == config
    assert command_line([(again, type(config)())]) == line
    assert command_line([(config, config)]) == []


def test_a_command_line_leads_back_to_a_config_with_nothing_where_the_default_is_something():
    config, default = Config(values=()), Config()
    assert build(Config, parse(*command_line([(config, default)]))) == config


def test_none_stays_none():
    assert coerce(Config, "name", None, "") is None


@pytest.mark.parametrize(
    "parent",
    [
        None,
        Parent(run_name="sft", hash="a", sweetspot="ppl-2.0"),
        Parent(run_name="sft", hash="a", lora=LoraConfig(lora_r=4)),
    ],
)
def test_restore_undoes_plain(parent):
    config = PTRunConfig(
        model=ModelLoadConfig(model="tiny", source="run:tiny"),
        dataset=DatasetConfig(dataset="arith", dataset_type="pt", version="1", loader="arith"),
        task="math",
        pft_method="dpo",
        lora=LoraConfig(full_modules=("lm_head",)),
        training=DPOTrainingConfig(beta=0.3),
        parent=parent,
    )
    assert restore(PTRunConfig, plain(config)) == config
    assert restore(Config, plain(Config(values=()))) == Config(values=())


def test_restore_takes_defaults_for_what_an_older_file_lacks():
    values = plain(Config(steps=3))
    del values["rate"]
    assert restore(Config, values) == replace(Config(), steps=3)
