"""A whole experiment at test size: what it leaves, that it is done once, and what a change does to
it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests import conftest, warm
from tests.conftest import ARITH, check, copy_home, environment, run_entry
from tuning.config import PACKAGE
from tuning.data import train_dataset
from tuning.plan import Plan, write_stage
from tuning.runs.atomic import read_json
from tuning.runs.lock import Lock
from tuning.runs.rundir import RunDirectory

EXPERIMENT = (
    "--model", "tiny", "--dataset", "arith", "--task", "math",
    "--total_data", "128", "--sft_data", "96", "--perplexity_thresholds", "5.0", "1.01",
    "--do_sft", "--do_dpo", "--do_inference", "--do_evaluation",
)  # fmt: skip
PIPELINE = "run_sweetspot_pipeline.py"


@pytest.fixture(scope="module")
def finished(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the experiment has ended well."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("experiment") / "home")
    check(run_entry(home, PIPELINE, *EXPERIMENT))
    return home


def results(home: Path) -> list[dict[str, str]]:
    """The rows of the only results.csv."""
    (path,) = (home / "outputs/reports").glob("*/results.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def touched(home: Path) -> dict[str, int]:
    """When each run directory's status was last written, by its path."""
    return {str(p.relative_to(home)): p.stat().st_mtime_ns for p in home.rglob("status.json")}


def test_rows_stand_in_plan_order_and_name_what_is_missing(finished: Path) -> None:
    rows = results(finished)
    assert [row["stage"] for row in rows] == [
        "base", "sft", "sweetspot", "sweetspot", "fork", "fork", "reference_sft", "reference_pt",
    ]  # fmt: skip
    for row in rows:
        if row["threshold"] == "1.01":
            assert row["pass_at_1"] == ""
            assert row["note"].startswith("perplexity never reached 1.01 (best ")
        else:
            assert 0 <= float(row["pass_at_1_low"]) <= float(row["pass_at_1"])
            assert float(row["pass_at_1"]) <= float(row["pass_at_1_high"]) <= 1


def test_budgets_add_up(finished: Path) -> None:
    (metadata,) = finished.glob("models/*/checkpoint-sweetspot-5.0/sweetspot_metadata.json")
    told = json.loads(metadata.read_text())
    (fork,) = finished.glob("models/tiny_sweetspot-ppl-5.0_dpo-arith-*")
    used = RunDirectory(fork).result["data_used"]
    assert told["sft_data_used"] == min(told["data_points_seen"], 96)
    assert told["sft_data_used"] + used == 128
    assert fork.name == f"tiny_sweetspot-ppl-5.0_dpo-arith-{used}"
    for row in results(finished):
        if row["total_data"]:
            assert int(row["sft_data_used"]) + int(row["pft_data"]) == int(row["total_data"])
            assert int(row["total_data"]) <= 128


def test_no_prompt_is_in_two_pools_and_subsets_are_nested() -> None:
    pools = {
        pool: [train_dataset.prompt_text(row) for row in train_dataset.rows(ARITH, pool)]
        for pool in ("sft", "preference", "validation", "test")
    }
    everything = [prompt for prompts in pools.values() for prompt in prompts]
    assert len(set(everything)) == len(everything)
    small, large = (train_dataset.rows(ARITH, "preference", size) for size in (50, 80))
    assert large[:50] == small


def test_a_second_run_starts_nothing(finished: Path) -> None:
    before = touched(finished)
    started = time.monotonic()
    done = check(run_entry(finished, PIPELINE, *EXPERIMENT))
    assert touched(finished) == before
    assert "started" not in done.stderr
    assert "report.html" in done.stdout
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "flags", [("--sft_micro_batch_size", "4"), ("--max_parallel", "1"), ("--pft_save_steps", "3")]
)
def test_what_cannot_change_the_result_changes_nothing(
    finished: Path, flags: tuple[str, ...]
) -> None:
    before = touched(finished)
    check(run_entry(finished, PIPELINE, *EXPERIMENT, *flags))
    assert touched(finished) == before


def test_a_change_trains_only_what_depends_on_it(finished: Path, tmp_path: Path) -> None:
    home = copy_home(finished, tmp_path / "home")
    before = touched(home)
    check(run_entry(home, PIPELINE, *EXPERIMENT, "--pft_learning_rate", "2e-4"))
    after = touched(home)
    assert {path: after[path] for path in before} == before
    new = sorted(Path(path).parent.name for path in after.keys() - before.keys())
    assert len(new) == 4, new
    assert all("_dpo-arith-" in name or "_pt-arith-" in name for name in new)


def test_forks_alone_find_the_checkpoints_of_an_earlier_sft(finished: Path, tmp_path: Path) -> None:
    home = copy_home(finished, tmp_path / "home")
    flags = [flag for flag in EXPERIMENT if flag != "--do_sft"]
    before = touched(home)
    check(run_entry(home, PIPELINE, *flags, "--pft_method", "kto", "--no_references"))
    new = {Path(path).parent.name for path in touched(home).keys() - before.keys()}
    assert {name.partition("_kto")[0] for name in new} == {"tiny_sweetspot-ppl-5.0"}


def test_two_launchers_share_a_home(trained_home: Path, finished: Path, tmp_path: Path) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    command = [str(PACKAGE / PIPELINE), *EXPERIMENT, "--no_references"]
    logs = [tmp_path / f"launcher-{number}.txt" for number in range(2)]
    (sft,) = (finished / "models").glob("tiny_sft-arith-96-????????")
    held = f"{sft.name}: in use by process {os.getpid()}"
    with Lock(home / "models" / sft.name).holding(), contextlib.ExitStack() as stack:
        both = [
            warm.start(command, environment(home), home, stderr=stack.enter_context(log.open("wb")))
            for log in logs
        ]
        deadline = time.monotonic() + 300
        while not all(held in log.read_text() for log in logs):
            assert time.monotonic() < deadline, [log.read_text() for log in logs]
            time.sleep(0.2)
    ended = [process.wait(timeout=600) for process in both]
    assert ended == [0, 0], [log.read_text() for log in logs]
    for status in home.rglob("status.json"):
        assert json.loads(status.read_text())["state"] == "done", status
    for path in home.glob("models/*/metrics.jsonl"):
        steps = [line["step"] for line in RunDirectory(path.parent).metrics() if "loss" in line]
        assert steps == sorted(set(steps)), path


def test_a_held_run_with_no_wait_is_refused(tiny_home: Path) -> None:
    name = "tiny_sft-arith-32"
    flags = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", "32",
             "--do_training", "--no_wait")  # fmt: skip
    with Lock(tiny_home / "models" / name).holding():
        refused = check(run_entry(tiny_home, "run_sft.py", *flags), 1)
    assert f"in use by process {os.getpid()}" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_stages_do_what_was_planned_whatever_collections_yaml_says_by_then(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone when they start, and every number is the same."""
    home = copy_home(finished, tmp_path / "home")
    plan = Plan.from_json(read_json(next(home.glob("outputs/reports/*/plan.json"))))
    before = {path: path.read_text() for path in home.rglob("scores.json")}
    again = [stage for stage in plan.stages if stage.role in ("base", "sft", "sweetspot", "fork")]
    for path in (*home.glob("models/tiny_*"), *home.glob("outputs/math/*")):
        shutil.rmtree(path)
    monkeypatch.setattr(conftest, "COLLECTIONS", tmp_path / "removed.yaml")
    for stage in again:
        write_stage(tmp_path / "stage.json", stage)
        done = check(run_entry(home, stage.script, "--stage", tmp_path / "stage.json"))
        assert ("skipped: " in done.stdout) == (stage.sweetspot == "ppl-1.01")
    made = {path: path.read_text() for path in home.rglob("scores.json")}
    assert len(made) == 4 and made.items() <= before.items()
