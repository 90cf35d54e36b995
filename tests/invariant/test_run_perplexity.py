"""The perplexity of any model from the command line: that which its training measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import check, copy_home, run_entry
from tuning.runs.atomic import read_object
from tuning.runs.rundir import RunDirectory

DATA = ("--dataset", "arith", "--task", "math")
SCRIPT = "run_perplexity.py"


def measured(home: Path, *flags: object) -> dict[str, float]:
    output = home / "perplexity.json"
    done = check(run_entry(home, SCRIPT, *DATA, "--size", 32, "--output", output, *flags))
    found = read_object(output) or {}
    assert f"token-level perplexity  {found['token_level']:.4f}  over" in done.stdout
    assert f"sample mean perplexity  {found['sample_mean']:.4f}  over 32 answers" in done.stdout
    return found


def test_it_is_what_training_measured(trained_home: Path, tmp_path: Path) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    train = ("--model", "tiny", *DATA, "--train_size", 96, "--perplexity_thresholds", 5.0)
    check(run_entry(home, "run_sft.py", *train, "--do_training"))
    (path,) = (path for path in (home / "models").iterdir() if "_sft-" in path.name)
    run = RunDirectory(path)
    spot = read_object(path / "checkpoint-sweetspot-5.0" / "sweetspot_metadata.json") or {}
    base, last, sweetspot = (
        measured(home, *flags)["token_level"]
        for flags in (
            ("--model", "tiny"),
            ("--run", path.name),
            ("--run", path.name, "--sweetspot", "ppl-5.0"),
        )
    )
    assert base == pytest.approx(run.result["base_perplexity"], rel=1e-4)
    assert last == pytest.approx(run.result["perplexity"], rel=1e-4)
    assert sweetspot == pytest.approx(spot["perplexity"], rel=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "give --model, or --run"),
        (("--run", "none"), "there is no run 'none'"),
        (("--model", "tinny"), "Did you mean 'tiny'?"),
        (("--model", "tiny", "--pool", "test"), "unknown pool 'test'"),
        (("--model", "tiny", "--size", 9999), "has only 256"),
    ],
)
def test_mistakes_are_one_line(home: Path, flags: tuple[object, ...], said: str) -> None:
    refused = check(run_entry(home, SCRIPT, *DATA, *flags), 2)
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
