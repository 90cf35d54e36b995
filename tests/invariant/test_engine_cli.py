"""run_pretrain.py on every kind of data and setting, through the command line: what it leaves, and
that later stages take it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import check, run_entry
from tests.engine import small
from tuning.runs.rundir import RunDirectory

SHAPE = (
    "--num_layer", "2", "--num-attention-heads", "4", "--num_key_value_heads", "2", "--hidden_size",
    "32", "--intermediate_size", "64", "--block_size", "32", "--vocab_size", "512",
)  # fmt: skip
SHORT = (
    "--total_batch_size", "128", "--batch_size", "2", "--warmup_steps", "2", "--max_steps", "6",
    "--save_every_steps", "2", "--max_lr", "1e-3",
)  # fmt: skip


def run_of(home: Path, name: str = "gpt") -> RunDirectory:
    """The only run of an experiment."""
    (path,) = (home / "models").glob(f"{name}-????????")
    return RunDirectory(path)


def losses(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in run.metrics() if "loss" in line]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mock_data_leaves_all_that_a_run_leaves(home: Path) -> None:
    flags = (
        "--use-mock-data", "--mock_data_num_samples", "40", *SHAPE, *SHORT, "--exp_name", "try",
        "--validation_every_steps", "3", "--use_profiler", "--steps_to_profile", "2", "3",
        "--min_samples_per_checkpoint", "8", "--wandb", "offline",
    )  # fmt: skip
    check(run_entry(home, "run_pretrain.py", *flags))
    run = run_of(home, "try")
    lines = [line for line in run.metrics() if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) >= {
        "epoch", "lr", "grad_norm", "tokens", "samples", "tokens_per_second", "samples_per_second",
        "loss_tokens", "step_seconds", "fill", "balance", "mfu", "peak_memory_gb",
    }  # fmt: skip
    assert [line["step"] for line in run.metrics() if "val_loss" in line] == [3, 6]
    logs = home / "outputs/logs" / f"try_{run.name[-8:]}"
    told = (logs / "log.txt").read_text().splitlines()
    assert told[0] == f"1 train {lines[0]['loss']:.4f}"
    assert sum(line.split()[1] == "val" for line in told) == 2
    assert json.loads((logs / "rank0_trace.json").read_text())["traceEvents"]
    exported = sorted(path.name for path in (run.path / "hf_format").iterdir())
    assert exported == ["samples_16", "samples_24", "samples_8"]
    for folder in (run.path / "model", *(run.path / "hf_format").iterdir()):
        assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 2
    told_to_wandb(run, lines[-1])
    again = check(run_entry(home, "run_pretrain.py", *flags))
    assert "already trained" in again.stdout


def told_to_wandb(run: RunDirectory, line: dict[str, Any]) -> None:
    """That W&B's offline file has the metrics of a step, and the settings."""
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    kept = file.read_bytes()
    for name, value in line.items():
        assert name == "step" or (name.encode() in kept and json.dumps(value).encode() in kept)
    assert b"mock_data_num_samples" in kept


def test_experts(home: Path) -> None:
    flags = ("--use_mock_data", *SHAPE, *SHORT, "--use_moe", "--num_experts", "4",
             "--num_experts_per_tok", "2", "--moe_intermediate_size", "32")  # fmt: skip
    check(run_entry(home, "run_pretrain.py", *flags))
    run = run_of(home)
    assert all(line["router_aux_loss"] > 0 for line in run.metrics() if "loss" in line)
    assert AutoModelForCausalLM.from_pretrained(run.path / "model").config.num_experts == 4


def test_text_through_a_tokenizer(tiny_home: Path, tmp_path: Path) -> None:
    text = write_lines(
        tmp_path / "text.jsonl",
        [{"text": f"{a} plus {b} is {a + b}."} for a in range(20) for b in range(20)],
    )
    tokenizer = tiny_home / "models/tiny/model"
    flags = ("--data_path", text, "--tokenizer", tokenizer, *SHAPE, *SHORT, "--max_steps", "30",
             "--validation_split", "0.1", "--save_best_val_loss", "--validation_every_steps", "10",
             "--loss", "focal")  # fmt: skip
    check(run_entry(tiny_home, "run_pretrain.py", *flags))
    run = run_of(tiny_home)
    assert losses(run)[-1] < losses(run)[0]
    assert run.result["best_val_loss"] <= run.result["val_loss"]
    AutoModelForCausalLM.from_pretrained(run.path / "hf_format/best_val_loss")
    AutoTokenizer.from_pretrained(run.path / "model")


def test_documents_in_blocks_train_a_model_on(tiny_home: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    documents = [{"input_ids": generator.integers(5, 300, n).tolist()}
                 for n in generator.integers(5, 90, 60)]  # fmt: skip
    path = write_lines(tmp_path / "documents.jsonl", documents)
    flags = ("--model_name_or_path", "tiny", "--data-path", path, "--block-size", "64",
             "--batch-size", "8", "--max-tokens-per-gpu", "256", "--learning-rate", "1e-3",
             "--warmup_steps", "2", "--max_epochs", "2")  # fmt: skip
    check(run_entry(tiny_home, "run_pretrain.py", *flags))
    run = run_of(tiny_home)
    assert run.metrics()[-1]["epoch"] == 2.0
    assert losses(run)[-1] < losses(run)[0]
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight
        for path in (tiny_home / "models/tiny/model", run.path / "model")
    )
    assert not torch.equal(before, after)


def test_rows_with_osft(tiny_home: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for n in generator.integers(6, 60, 40):
        ids = generator.integers(5, 300, n).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:], "len": int(n)})
    path = write_lines(tmp_path / "rows.jsonl", rows)
    flags = ("--model_name_or_path", tiny_home / "models/tiny/model", "--data_path", path,
             "--batch_size", "16", "--max_tokens_per_gpu", "128", "--osft",
             "--osft-unfreeze-rank-ratio", "0.5", "--warmup_steps", "1", "--max_lr", "1e-3",
             "--max_tokens", "4000")  # fmt: skip
    check(run_entry(tiny_home, "run_pretrain.py", *flags))
    run = run_of(tiny_home)
    assert run.result["train_tokens"] >= 4000
    assert run.metrics()[-1]["fill"] > 0.5
    kept = AutoModelForCausalLM.from_pretrained(run.path / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_home / "models/tiny/model").state_dict()
    assert kept.keys() == base.keys()
    assert small.outside(base, kept, 0.5)
    too_long = ("--max_tokens_per_gpu", "40", "--seed", "1")
    refused = check(run_entry(tiny_home, "run_pretrain.py", *flags, *too_long), 2)
    assert "max_tokens_per_gpu" in refused.stderr
    check(run_entry(tiny_home, "run_pretrain.py", *flags, *too_long, "--on_long", "truncate"))


NO_LOSS = {"input_ids": [5, 6, 7], "labels": [5, -100, -100]}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([NO_LOSS, {"input_ids": [5], "labels": [5]}], "has a loss, so there is nothing to learn"),
        ([{"input_ids": [5]}] * 64, "has a loss, so there is nothing to learn"),
        ([{"text": ""}, {"text": ""}], "has no text in it"),
    ],
    ids=["rows", "documents", "texts"],
)
def test_data_that_teach_nothing_are_refused(
    tiny_home: Path, tmp_path: Path, lines: list[dict], words: str
) -> None:
    path = write_lines(tmp_path / "data.jsonl", lines)
    flags = ("--model_name_or_path", "tiny", "--data_path", path, "--block_size", "8",
             "--batch_size", "2", "--max_tokens_per_gpu", "64", "--max_steps", "1",
             "--warmup_steps", "0", "--learning_rate", "1e-3")  # fmt: skip
    refused = check(run_entry(tiny_home, "run_pretrain.py", *flags), 2)
    assert f"'{path}'" in refused.stderr and words in refused.stderr
    assert [path.name for path in (tiny_home / "models").iterdir()] == ["tiny"]


def test_rows_and_texts_that_teach_nothing_are_counted(tiny_home: Path, tmp_path: Path) -> None:
    good = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    path = write_lines(tmp_path / "rows.jsonl", [good, NO_LOSS, good, NO_LOSS])
    flags = ("--model_name_or_path", "tiny", "--batch_size", "2", "--max_tokens_per_gpu", "64",
             "--max_steps", "2", "--warmup_steps", "0", "--learning_rate", "1e-3")  # fmt: skip
    done = check(run_entry(tiny_home, "run_pretrain.py", *flags, "--data_path", path))
    assert f"2 of 4 samples of '{path}' have no token with a loss" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "nothing to train on; give one of --use_mock_data"),
        (("--use_mock_data", "--use_liger_kernels"), "--use_liger_kernels needs an NVIDIA GPU"),
        (("--use_mock_data", "--sep_size", "2"), "sep_size 2 does not divide the 1 processes"),
        (("--use_mock_data", "--data_path", "{rows}"), "--use_mock_data and --data_path to train"),
        (("--use_mock_data", "--max_lr", "1", "--learning_rate", "1"), "the same setting"),
        (("--preset", "gpt-1B", "--use_mock_data"), "Did you mean 'gpt-1b'?"),
        (("--use_mock_dat",), "Did you mean '--use_mock_data'?"),
        (("--data_path", "{text}"), "say how to read it with --tokenizer"),
        (("--data_path", "{rows}"), "--max_tokens_per_gpu"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(
    home: Path, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    files = {"text": tmp_path / "text.jsonl", "rows": tmp_path / "rows.jsonl"}
    write_lines(files["text"], [{"text": "a"}])
    write_lines(files["rows"], [{"input_ids": [1, 2], "labels": [1, 2]}])
    given = [flag.format(**files) for flag in flags]
    small = SHAPE if given and "--model" not in given else ()
    refused = check(run_entry(home, "run_pretrain.py", *small, *given), 2)
    assert words in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
