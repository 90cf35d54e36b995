"""The engine for programs of other people: what TrainingArgs may be, that train() is the training
of run_pretrain.py, also interrupted and by several processes, and that the examples run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.conftest import check, environment, run_entry, run_script, torchrun
from tuning import engine, run_pretrain
from tuning.config import CHECKOUT
from tuning.engine import ModelConfig, PretrainingConfig, TrainingArgs, TrainingResult, train
from tuning.engine.losses import focal
from tuning.engine.samples import Rows
from tuning.runs.errors import Interrupted, UserError

unit = pytest.mark.unit

SHAPE: dict[str, Any] = {
    "block_size": 32, "vocab_size": 96, "num_layer": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 64, "dropout": 0.1,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "use_mock_data": True, "mock_data_num_samples": 48, "total_batch_size": 256, "batch_size": 4,
    "max_steps": 8, "learning_rate": 3e-3, "warmup_steps": 2, "save_every_steps": 3,
    "precision": "fp32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_HOME", str(tmp_path / "home"))


def arguments(output: Path, **changes: Any) -> TrainingArgs:
    return TrainingArgs(
        **{"model": ModelConfig(**SHAPE), "output_dir": output} | SETTINGS | changes
    )


def flags(*, without: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """The settings of `arguments()` as flags of run_pretrain.py."""
    chosen = {k: v for k, v in (SHAPE | SETTINGS | changes).items() if k not in without}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def program(home: Path, code: str, *words: object, processes: int = 1) -> str:
    """What a program of a user prints, alone or under torchrun."""
    file = home.parent / "program.py"
    file.write_text(code)
    if processes == 1:
        return check(run_script(home, file, *words, cwd=home.parent)).stdout
    command = torchrun(processes, file, *words)
    return check(warm.run(command, environment(home), home.parent, timeout=300)).stdout


LIGHT = """
import sys
import tuning.engine
assert "tuning.engine.api" not in sys.modules
from tuning.engine import ModelConfig, PretrainingConfig, TrainingArgs, train
heavy = {"torch", "transformers", "trl", "wandb", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


@unit
def test_importing_it_imports_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


@unit
def test_the_package_has_what_it_names_and_nothing_else() -> None:
    assert all(getattr(engine, name) for name in engine.__all__)
    with pytest.raises(AttributeError, match=r"'tuning\.engine' has no attribute 'Trainer'"):
        _ = engine.Trainer


@unit
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "give model_name_or_path (existing weights to start from) or model"),
        (
            {"model_name_or_path": "tiny"},
            "give model_name_or_path (existing weights to start from) or",
        ),
        ({"learning_rate": -1.0}, "max_lr is -1.0; it must be above zero"),
        ({"learning_rate": "fast"}, "max_lr is 'fast'; it must be a number"),
        ({"max_steps": 2.5}, "max_steps is '2.5'; it must be a whole number"),
        ({"max_epochs": None}, "max_epochs is None; give it a value or leave it out"),
        ({"lr_scheduler": "cosin"}, "Did you mean 'cosine'?"),
        ({"validation_split": 1.5}, "validation_split is 1.5"),
        ({"sep_size": 0}, "sep_size is 0; it must be at least 1"),
        ({"seq_len": 16, "pretraining_config": PretrainingConfig(block_size=32)}, "leave seq_len"),
    ],
)
def test_mistakes_are_said_at_once(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        arguments(tmp_path / "run", **changes)
    assert said in str(caught.value)


@unit
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_mock_data": False}, "nothing to train on; give one of"),
        ({"data_path": "missing.jsonl", "use_mock_data": False}, "'missing.jsonl' cannot be read"),
        ({"pretraining_config": PretrainingConfig(block_size=64)}, "seq_len 64 is above block_"),
        ({"total_batch_size": 250}, "total_batch_size 250 is not a multiple of seq_len 32"),
        ({"model": None, "model_name_or_path": "tinny"}, "Did you mean 'tiny'?"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing(tmp_path: Path, changes, said: str) -> None:
    with pytest.raises(UserError) as caught:
        train(arguments(tmp_path / "run", **changes))
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@unit
def test_settings_come_as_people_write_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="block_size is 0; it must be at least 1"):
        PretrainingConfig(block_size=0)
    data = tmp_path / "rows.jsonl"
    args = arguments(
        tmp_path / "run", data_path=data, steps_to_profile=[3, 4], max_steps="1e3",
        osft_target_patterns=["q_proj"],
    )  # fmt: skip
    assert (args.data_path, args.max_steps) == (str(data), 1000)
    assert (args.steps_to_profile, args.osft_target_patterns) == ((3, 4), ("q_proj",))
    assert args.max_lr == 3e-3
    assert replace(args, seed=1).max_lr == 3e-3
    assert replace(args, learning_rate=1e-3).max_lr == replace(args, max_lr=1e-3).max_lr == 1e-3


@unit
def test_rows_are_not_cut_into_blocks(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input_ids": [1, 2], "labels": [-100, 2]}\n')
    args = arguments(
        tmp_path / "run", data_path=rows, use_mock_data=False, max_tokens_per_gpu=64,
        pretraining_config=PretrainingConfig(block_size=16),
    )  # fmt: skip
    with pytest.raises(UserError, match="holds rows with labels; they are not cut into blocks"):
        train(args)


@unit
def test_it_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    """The same hash, so that either goes on with what the other began."""
    output = tmp_path / "run"
    told = run_pretrain.parser().parse_args([*flags(), "--output_dir", str(output)])
    assert run_pretrain.config_of(told) == arguments(output).run_config()

    base, documents = tmp_path / "base", tmp_path / "documents.jsonl"
    base.mkdir()
    (base / "config.json").write_text("{}")
    documents.write_text('{"input_ids": [1, 2, 3]}\n')
    shared = {"data_path": documents, "batch_size": 128, "max_tokens_per_gpu": 40000}
    args = TrainingArgs(
        model_name_or_path=base, output_dir=output,
        pretraining_config=PretrainingConfig(block_size=4096), **shared,
    )  # fmt: skip
    words = [word for name, value in shared.items() for word in (f"--{name}", str(value))]
    told = run_pretrain.parser().parse_args(
        [*words, "--model_name_or_path", str(base), "--block_size", "4096"]
    )
    assert run_pretrain.config_of(told).hash == args.run_config().hash


PROGRAM = """
import json, sys
from dataclasses import replace
from tuning.engine import ModelConfig, TrainingArgs, train
from tuning.runs.errors import UserError
shape, settings = json.loads(sys.argv[1]), json.loads(sys.argv[2])
args = TrainingArgs(model=ModelConfig(**shape), output_dir="api", **settings)
for again in (args, replace(args, output_dir="api_other", max_lr=1e-3)):
    result = train(again)
    print(f"RESULT {result.directory.name} {result.result['global_step']} {result.model.is_dir()}")
try:
    train(replace(args, max_lr=1e-3))
except UserError as error:
    print(f"REFUSED {error}")
"""


def test_it_leaves_the_weights_of_run_pretrain(home: Path) -> None:
    shape = SHAPE | {"dropout": 0.0}
    words = (json.dumps(shape), json.dumps(SETTINGS))
    said = program(home, PROGRAM, *words)
    alone = home.parent / "api"
    check(run_entry(home, "run_pretrain.py", *flags(dropout=0.0), "--output_dir", home / "cli"))
    assert weights(home / "cli") == weights(alone)
    assert not (home / "models").exists()
    again = ("run_pretrain.py", *flags(dropout=0.0), "--output_dir", alone)
    assert "api: already trained" in check(run_entry(home, *again)).stdout
    assert said.count("RESULT") == 2
    assert "RESULT api_other 8 True" in said
    assert "REFUSED" in said
    assert "holds a run with other settings (training.max_lr: 0.003 -> 0.001)" in said

    two = home.parent / "two"
    two.mkdir()
    said = program(two / "home", PROGRAM, *words, processes=2)
    assert said.count("RESULT api 8 True") == said.count("RESULT api_other 8 True") == 2
    assert said.count("REFUSED") == 2
    for name in ("api", "api_other"):
        one, shared = (
            load_file(root / name / "model/model.safetensors") for root in (home.parent, two)
        )
        assert max((one[k] - shared[k]).abs().max().item() for k in one) <= 1e-5


class Stopping:
    """The plain loss, and at one of its calls a signal."""

    def __init__(self, at: int | None = None) -> None:
        self.calls, self.at = 0, at

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGTERM)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def random_rows() -> Rows:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 96, n) for n in generator.integers(4, 32, 48)]
    return Rows(ids, [np.where(np.arange(len(x)) < 2, -100, x) for x in ids])


def test_stopped_by_a_signal_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """With samples, a loss and an optimizer of the program's own."""
    own: dict[str, Any] = {"samples": random_rows(), "optimizer": sgd}
    packed = {"use_mock_data": False, "max_tokens_per_gpu": 64, "batch_size": 12}
    before = signal.getsignal(signal.SIGTERM)
    straight = train(arguments(tmp_path / "one", **packed), loss_function=Stopping(), **own)
    args = arguments(tmp_path / "run", **packed)
    with pytest.raises(Interrupted):
        train(args, loss_function=Stopping(at=10), **own)
    assert signal.getsignal(signal.SIGTERM) is before
    status = json.loads((args.directory / "status.json").read_text())
    assert status["state"] == "pending"
    assert not (args.directory / "result.json").exists()

    result = train(args, loss_function=Stopping(), **own)
    assert isinstance(result, TrainingResult)
    assert weights(result.directory) == weights(straight.directory)
    assert result.result["samples"] == 8 * 12
    written = (args.directory / "metrics.jsonl").read_bytes()
    assert train(args, loss_function=Stopping(at=1), **own).result == result.result
    assert (args.directory / "metrics.jsonl").read_bytes() == written


def test_what_a_program_brings_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", max_steps=1)
    train(args, loss_function=partial(focal, gamma=1.0))
    for own in (
        {},
        {"loss_function": partial(focal, gamma=2.0)},
        {"loss_function": partial(focal, gamma=1.0), "optimizer": sgd},
    ):
        with pytest.raises(UserError, match=r"holds a run with other settings \(.*program"):
            train(args, **own)


@unit
def test_samples_stand_in_place_of_other_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"samples.*use_mock_data|use_mock_data.*samples"):
        train(arguments(tmp_path / "run"), samples=random_rows())
    with pytest.raises(UserError, match="samples is empty"):
        train(arguments(tmp_path / "run", use_mock_data=False), samples=_Nothing())
    assert not (tmp_path / "run").exists()


def test_some_of_a_programs_samples_are_held_out(tmp_path: Path) -> None:
    args = arguments(
        tmp_path / "run", use_mock_data=False, max_tokens_per_gpu=64, batch_size=12, max_epochs=1,
        max_steps=None, validation_split=0.25,
    )  # fmt: skip
    result = train(args, samples=random_rows()).result
    assert result["samples"] == 36
    assert 4 < result["val_loss"] < 5
    with pytest.raises(UserError, match=r"has the token id .* and the model has the ids 0 to 49"):
        shape = ModelConfig(**SHAPE | {"vocab_size": 50})
        train(replace(args, output_dir=tmp_path / "small", model=shape), samples=random_rows())


class _Nothing:
    lengths = loss_tokens = squares = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError


@unit
def test_a_folder_of_other_files_is_left_alone(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and is not a run directory"):
        train(arguments(mine))
    forced = run_entry(home, "run_pretrain.py", *flags(), "--output_dir", mine, "--force")
    assert "is not empty and is not a run directory" in check(forced, 2).stderr
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match=r"cannot be a run directory \(Not a directory\)"):
        train(arguments(mine / "thesis.txt" / "run"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="is not empty and is not a run directory"):
        train(arguments(model))


def example(home: Path, name: str, *words: object, code: int = 0) -> subprocess.CompletedProcess:
    return check(run_script(home, CHECKOUT / "examples" / name, *words, cwd=home.parent), code)


def test_pretrain_custom_runs(home: Path) -> None:
    said = example(home, "pretrain_custom.py").stdout
    run = home.parent / "checkpoints/pretrain_custom"
    assert f"the model is in {run / 'model'}" in said
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] / 2
    assert "already trained" in example(home, "pretrain_custom.py").stdout


def test_finetune_rows_runs(tiny_home: Path) -> None:
    rows = tiny_home.parent / "checkpoints/rows.jsonl"
    refused = example(tiny_home, "finetune_rows.py", code=2).stderr
    assert "'checkpoints/rows.jsonl' cannot be read" in refused
    data = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--size", 500)
    check(run_entry(tiny_home, "run_tokenize.py", *data, "--output", rows))
    said = example(tiny_home, "finetune_rows.py", rows).stdout
    shown = said.partition("validation loss: ")[2].splitlines()[0]
    losses = [float(loss) for loss in shown.split(" -> ")]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 2
