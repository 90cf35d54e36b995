"""Progress moves within a step that takes long."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from tuning.config import CHAT_TEMPLATES, DatasetEntry
from tuning.data import arith, train_dataset
from tuning.data.encoding import Encoded
from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.engine.tokenizer import train_tokenizer
from tuning.evaluation.config import PassAtKConfig
from tuning.evaluation.perplexity import measure
from tuning.inference.hf_engine import HFGenerator
from tuning.runs import rundir
from tuning.runs.progress import PROGRESS_VARIABLE, tell_part
from tuning.runs.rundir import RunDirectory

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=128, vocab_size=300, num_layer=1, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32,
)  # fmt: skip


@pytest.fixture
def told(tmp_path, monkeypatch) -> list[dict]:
    """What a supervisor reads, all of it: nothing is left out for coming too soon."""
    found: list[dict] = []
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "told.json"))
    write = rundir.atomic.write_json

    def noted(path: Path, value) -> None:
        write(path, value)
        if path.name == "told.json":
            found.append(json.loads(path.read_text()))

    monkeypatch.setattr(rundir.atomic, "write_json", noted)
    monkeypatch.setattr(rundir.time, "monotonic", iter(range(1, 100_000)).__next__)
    return found


def test_parts_are_noted_at_the_position_of_their_step(tmp_path, told):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.progress("train", 0, 9, "measures perplexity", final=True)
    tell_part("perplexity", 2, 5)
    run.progress("train", 1, 9, "loss 1")
    tell_part("perplexity", 3, 5)
    notes = [(record["at"], record["note"]) for record in told]
    assert notes == [(0, "measures perplexity"), (0, "perplexity 2/5"), (1, "loss 1"),
                     (1, "perplexity 3/5")]  # fmt: skip
    assert {record["directory"] for record in told} == {str(run.path)}
    written = json.loads((run.path / "progress.json").read_text())
    assert (written["phase"], written["note"]) == ("train", "perplexity 3/5")


def test_parts_are_not_written_more_often_than_steps(tmp_path):
    run = RunDirectory(tmp_path)
    run.progress("train", 0, 9, "first", final=True)
    for at in range(50):
        tell_part("perplexity", at, 50)
    assert json.loads((tmp_path / "progress.json").read_text())["note"] == "first"


def test_a_measurement_and_a_batch_of_answers_move(tmp_path, told):
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    tokenizer = train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template)
    model = build(SHAPE, seed=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    RunDirectory(tmp_path).progress("train", 0, 4)
    measure(model, [Encoded(prompt=[1], response=[2, 3])] * 10, batch_size=4)
    assert [record["note"] for record in told] == [
        "", "perplexity 0/10", "perplexity 4/10", "perplexity 8/10",
    ]  # fmt: skip
    told.clear()
    RunDirectory(tmp_path).progress("infer", 3, 7)
    rows = train_dataset.rows(DatasetEntry(name="arith", loader="arith"), "test", 3)
    sampling = PassAtKConfig(n_samples=2, k_values=(1,), max_new_tokens=5)
    HFGenerator(model, tokenizer).generate([row["prompt"] for row in rows], sampling, "hash", 0)
    assert [record["note"] for record in told][:4] == ["", "token 1/5", "token 2/5", "token 3/5"]
    assert {(record["phase"], record["at"], record["of"]) for record in told} == {("infer", 3, 7)}
