"""Bad input ends with one clear line and exit code 2, and leaves nothing behind; help needs nothing
heavy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import check, environment, run_entry
from tuning.config import PACKAGE

PIPELINE = "run_sweetspot_pipeline.py"
GOOD = {
    "--model": "tiny", "--dataset": "arith", "--task": "math", "--total_data": "64",
    "--sft_data": "32", "--perplexity_thresholds": "5.0", "--do_sft": None,
}  # fmt: skip
ENTRIES = sorted(path.name for path in PACKAGE.glob("run_*.py"))

pytestmark = pytest.mark.unit


def command(changes: dict[str, str | None]) -> list[str]:
    """The flags of a good experiment with some of them changed."""
    return [word for pair in (GOOD | changes).items() for word in pair if word is not None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--model": "tinny"}, "unknown model 'tinny'"),
        ({"--model": "tinny"}, "Did you mean 'tiny'?"),
        ({"--dataset": "arit"}, "unknown dataset 'arit'"),
        ({"--task": "maths"}, "Did you mean 'math'?"),
        ({"--pft_method": "dppo"}, "unknown preference method 'dppo'"),
        ({"--dataset": "tuluif"}, "task 'math' has no dataset 'tuluif'"),
        ({"--dataset": "gsm8k"}, "dataset 'gsm8k' is not here yet"),
        ({"--task": "ifeval", "--dataset": "tuluif"}, "'tuluif' is not here yet"),
        ({"--sft_data": "65"}, "sft_data 65 is above total_data 64"),
        ({"--perplexity_thresholds": "-1"}, "perplexity threshold -1.0 cannot be reached"),
        ({"--perplexity_thresholds": "0"}, "perplexity threshold 0.0 cannot be reached"),
        ({"--perplexity_thresholds": "nan"}, "perplexity threshold nan cannot be reached"),
        ({"--perplexity_thresholds": "two"}, "perplexity_thresholds is 'two'"),
        ({"--perplexity_patience": "2-0.1"}, "perplexity_patience is '2-0.1'"),
        ({"--sft_data": "0"}, "sft_data is 0; it must be at least 1"),
        ({"--total_data": "1000000"}, "total_data is 1000000, but the"),
        ({"--sft_data": "2.5"}, "invalid int value: '2.5'"),
        ({"--prompts": "5000"}, "prompts is 5000, but the test pool of 'arith' has only 1000"),
        ({"--prompts": "0"}, "prompts is 0; it must be at least 1"),
        ({"--modle": "tiny"}, "unknown flag '--modle'"),
        ({"--sft_learning_rate": "-1"}, "learning_rate is -1.0"),
        ({"--max_parallel": "0"}, "max_parallel is 0"),
        ({"--wandb": "maybe"}, "unknown --wandb mode 'maybe'"),
    ],
)
def test_one_line_that_says_what_is_wrong(
    home: Path, changes: dict[str, str | None], said: str
) -> None:
    refused = check(run_entry(home, PIPELINE, *command(changes)), 2)
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not list(home.iterdir())


def test_a_threshold_that_stands_twice(home: Path) -> None:
    refused = check(run_entry(home, PIPELINE, *command({}), "--perplexity_thresholds", 2, 2.0), 2)
    assert "perplexity_thresholds names 2.0 more than once" in refused.stderr
    assert not list(home.iterdir())


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    refused = check(run_entry(blocked / "home", PIPELINE, *command({})), 2)
    assert "cannot be written" in refused.stderr
    assert "TUNING_HOME" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("script", ["run_sft.py", "run_dpo.py", "run_inference.py"])
def test_stages_refuse_what_is_not_asked_for(home: Path, script: str) -> None:
    size = () if script == "run_inference.py" else ("--train_size", "8")
    flags = ("--model", "tiny", "--dataset", "arith", "--task", "math", *size)
    refused = check(run_entry(home, script, *flags), 2)
    assert "nothing to do" in refused.stderr
    refused = check(run_entry(home, script, *flags, "--do_evaluation"), 2)
    assert "python tuning/run_pretrain.py --model tiny" in refused.stderr
    assert not list(home.iterdir())


LIGHT = """
import sys, runpy
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in ("torch", "transformers", "trl", "wandb") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "flags",
    [
        *([script, "--help"] for script in ENTRIES),
        [PIPELINE, *command({"--do_dpo": None}), "--dry_run"],
        [PIPELINE, *command({"--do_dpo": None}), "--launcher", "slurm", "--dry_run"],
        [
            "cli.py", "submit", "--task", "math", "--dataset", "arith", "--sft_ratio", "0", "0.5",
            "--base_model", "tiny", "--pft_method", "dpo", "--train_sizes", "64", "--do_training",
            "--do_sft_first", "--launcher", "slurm", "--dry_run",
        ],
        ["cli.py", "--help"],
        ["cli.py", "submit", "--help"],
    ],
    ids=lambda flags: " ".join(flags[-2:]),
)  # fmt: skip
def test_help_and_dry_run_import_nothing_heavy(home: Path, flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(PACKAGE / flags[0]), *flags[1:]],
        env=environment(home), capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    assert not list(home.iterdir())


def test_every_help_says_what_is_written() -> None:
    for script in ENTRIES:
        done = subprocess.run(
            [sys.executable, str(PACKAGE / script), "--help"],
            capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "100"},
        )  # fmt: skip
        assert "rites" in done.stdout, script
