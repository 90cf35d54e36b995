"""What TRL makes of the rows is counted: a version of it that drops, cuts or repeats some ends a
run at the first step that differs, whatever the method.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import check, copy_home, run_entry, run_script
from tuning.runs.rundir import RunDirectory

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--do_training")
COMMANDS = {
    "SFT": ("run_sft", "--train_size", "32"),
    "DPO": ("run_dpo", "--train_size", "32"),
    "KTO": ("run_dpo", "--train_size", "32", "--pft_method", "kto"),
    "GRPO": ("run_dpo", "--train_size", "16", "--pft_method", "grpo"),
}
LIBRARY = '''
"""Another version of TRL, in which the rows of {method} are not what was given."""
import importlib, sys, trl

def changed(rows):
    {fault}

trainer = trl.{method}Trainer
real = trainer.__init__

def init(self, *args, train_dataset, **more):
    real(self, *args, train_dataset=changed(train_dataset), **more)

trainer.__init__ = init
from tuning.entry import run
module, sys.argv = sys.argv[1], sys.argv[1:]
run(importlib.import_module("tuning." + module).main)
'''
DROPS = "return rows.select(range(2, len(rows)))"
REPEATS = "return rows.select([1, *range(1, len(rows))])"
CUTS = "return rows.map(lambda row: {k: row[k][:-1] for k in row if k in %r})"


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("SFT", CUTS % ["input_ids", "labels"]),
        ("DPO", DROPS),
        ("KTO", CUTS % ["completion_ids"]),
        ("GRPO", REPEATS),
    ],
)
def test_a_library_that_changes_the_rows_is_noticed(
    trained_home: Path, tmp_path: Path, method: str, fault: str
) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    script = tmp_path / "library.py"
    script.write_text(LIBRARY.format(method=method, fault=fault))
    name, *flags = COMMANDS[method]
    done = check(run_script(home, script, name, *DATA, *flags, cwd=tmp_path), 1)
    (line,) = [line for line in done.stderr.splitlines() if "should have been trained on" in line]
    assert line.startswith("error: after step ")
    (path,) = (run for run in (home / "models").iterdir() if "tiny_" in run.name)
    assert not RunDirectory(path).done("train")
    assert RunDirectory(path).status["state"] == "failed"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
def test_rows_that_cannot_be_trained_on_are_refused_before_training(
    trained_home: Path, tmp_path: Path, method: str
) -> None:
    """Prompts that fill max_seq_length, of which TRL drops the row."""
    rows = [
        {"prompt": f"{n} + 1?", "chosen": f"#### {n + 1}", "rejected": f"#### {n}", "answer": n + 1}
        for n in range(16)
    ]
    rows[11]["prompt"] = "one more " * 100
    mine = write(tmp_path / "preference.jsonl", rows)
    collections = (Path(__file__).parents[1] / "collections.yaml").read_text()
    collections = collections.replace("datasets: [arith, gsm8k]", "datasets: [arith, gsm8k, mine]")
    collections = collections.replace(
        "  arith: {loader: arith}",
        f"  arith: {{loader: arith}}\n  mine: {{loader: jsonl, preference: {mine}}}",
    )
    (tmp_path / "collections.yaml").write_text(collections)
    home = copy_home(trained_home, tmp_path / "home")
    flags = ("--model", "tiny", "--dataset", "mine", "--task", "math", "--pft_method", method)
    flags = (*flags, "--train_size", "16", "--do_training")
    done = run_entry(home, "run_dpo.py", *flags, collections=tmp_path / "collections.yaml")
    assert "error: preference.jsonl:12: the prompt has " in check(done, 2).stderr
    assert [path.name for path in (home / "models").iterdir()] == ["tiny"]


def test_grpo_is_refused_beyond_the_context_as_the_others_are(
    trained_home: Path, tmp_path: Path
) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    flags = (*DATA, "--pft_method", "grpo", "--train_size", "16", "--max_seq_length", "1000")
    done = run_entry(home, "run_dpo.py", *flags, "--max_completion_length", "500")
    assert "tokens, answer included, and the context of 'tiny' is " in check(done, 2).stderr
