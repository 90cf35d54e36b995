"""The converter's rows are what SFT sees, and its file is whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ARITH, check, environment, run_entry
from tests.invariant.test_bad_input import LIGHT
from tuning.config import CHAT_TEMPLATES, PACKAGE
from tuning.data import train_dataset
from tuning.data.encoding import encode
from tuning.engine.samples import IGNORED
from tuning.engine.sources import kind_of, read_rows
from tuning.run_tokenize import labelled

SCRIPT = "run_tokenize.py"
GOOD = {"--model": "tiny", "--dataset": "arith", "--task": "math"}


def flags(output: Path, **changes: object) -> list[object]:
    chosen = GOOD | {"--output": output} | {f"--{k}": v for k, v in changes.items()}
    return [word for pair in chosen.items() for word in pair]


def tokenizer_of(home: Path):
    """The tokenizer of `tiny` with its own chat template."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(home / "models/tiny/model")
    found.chat_template = (CHAT_TEMPLATES / "tiny.jinja").read_text(encoding="utf-8")
    return found


@pytest.mark.parametrize("pool", ["sft", "validation"])
def test_rows_are_those_that_sft_trains_on(trained_home: Path, tmp_path: Path, pool: str) -> None:
    output = tmp_path / "out" / "rows.jsonl"
    done = check(run_entry(trained_home, SCRIPT, *flags(output, pool=pool, size=40)))
    tokenizer = tokenizer_of(trained_home)
    source = train_dataset.rows(ARITH, pool, 40)
    encoded = encode(tokenizer, source, 192, "row {}".format)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows == [labelled(row) for row in encoded]
    for row, before, given in zip(rows, encoded, source, strict=True):
        prompt = len(before.prompt)
        assert row["input_ids"] == before.prompt + before.response
        assert row["len"] == len(row["input_ids"]) == len(row["labels"])
        assert set(row["labels"][:prompt]) == {IGNORED}
        assert row["labels"][prompt:] == row["input_ids"][prompt:]
        answer = given["completion"][-1]["content"]
        assert tokenizer.decode(row["labels"][prompt:]).removesuffix("<|end|>") == answer

    assert kind_of(output) == "rows"
    found = read_rows(output)
    tokens, learnt = int(found.lengths.sum()), int(found.loss_tokens.sum())
    assert learnt == sum(len(row.response) for row in encoded)
    said = f"{output}: 40 rows, {tokens:,} tokens, {learnt:,} loss tokens"
    assert done.stdout.splitlines()[0] == said


def test_the_length_is_the_models_unless_it_is_given(trained_home: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = check(run_entry(trained_home, SCRIPT, *flags(output, size=10, max_seq_length=45)))
    lengths = [json.loads(line)["len"] for line in output.read_text().splitlines()]
    assert max(lengths) == 45
    assert f"{lengths.count(45)} of 10 answers were cut at 45 tokens" in done.stderr
    output.unlink()
    refused = check(run_entry(trained_home, SCRIPT, *flags(output, size=10, max_seq_length=5)), 2)
    assert "max_seq_length is 5" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_left_unless_forced(trained_home: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    output.write_text("mine\n")
    refused = check(run_entry(trained_home, SCRIPT, *flags(output, size=4)), 2)
    assert f"'{output}' already exists; add --force" in refused.stderr
    assert output.read_text() == "mine\n"
    check(run_entry(trained_home, SCRIPT, *flags(output, size=4), "--force"))
    assert len(output.read_text().splitlines()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pool": "sfft"}, "unknown pool 'sfft'; choose from: sft, validation."),
        ({"model": "tinny"}, "Did you mean 'tiny'?"),
        ({"model": "tiny"}, "make it with: python tuning/run_pretrain.py --model tiny"),
        ({"dataset": "gsm8k"}, "'gsm8k' is not here yet"),
        ({"task": "ifeval"}, "task 'ifeval' has no dataset 'arith'"),
        ({"size": 0}, "it must be at least 1"),
        ({"ouput": "x"}, "unknown flag '--ouput'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(home: Path, changes, said: str) -> None:
    refused = check(run_entry(home, SCRIPT, *flags(home / "rows.jsonl", **changes)), 2)
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not list(home.iterdir())


@pytest.mark.unit
def test_help_teaches_and_imports_nothing_heavy(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(PACKAGE / SCRIPT), "--help"],
        env=environment(home), capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for taught in ('"input_ids"', '"labels"', "--output rows.jsonl", "run_pretrain.py", "Writes"):
        assert taught in done.stdout
    assert not list(home.iterdir())
