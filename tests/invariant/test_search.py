"""A search with real runs: killed in the middle and started again, it ends with the decisions that
its results ask for; and answers to a first share of the prompts are those of the whole.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest

from tests.conftest import check, copy_home, run_entry, start_entry
from tuning.evaluation.scoring import first_scores
from tuning.plan import Plan, standing
from tuning.runs.atomic import read_json
from tuning.search.arms import Measure, Result
from tuning.search.grid import arms_of, results
from tuning.search.record import Record
from tuning.search.rounds import SCREEN, Search, actions, decide

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math")
EVALUATES = ("--do_inference", "--do_evaluation")
SEARCH = (
    "submit", "--task", "math", "--dataset", "arith", "--base_model", "tiny", "--pft_method", "dpo",
    "--sft_ratio", "0", "0.5", "1", "--train_sizes", "32", "--do_training", "--do_sft_first",
    *EVALUATES, "--experiment", "found", "--launcher", "local", "--max_parallel", "1",
    "--search", "--search_max_runs", "2", "--search_batch", "1", "--search_first", "0.5",
)  # fmt: skip


def test_a_first_share_is_the_beginning_of_the_whole(trained_home: Path, tmp_path: Path):
    straight = trained_home / "outputs/math/tiny/responses.jsonl"
    home = copy_home(trained_home, tmp_path / "home")
    folder = home / "outputs/math/tiny"
    for path in folder.iterdir():
        path.unlink()
    done = check(run_entry(home, "run_inference.py", *DATA, *EVALUATES, "--first_prompts", 3))
    assert "on the first 3 of 8 prompts" in done.stdout
    part = (folder / "responses.jsonl").read_text()
    assert len(part.splitlines()) == 4, "a batch of four is answered whole"
    assert straight.read_text().startswith(part)
    whole = read_json(trained_home / "outputs/math/tiny/scores.json")
    assert read_json(folder / first_scores(3))["correct"] == whole["correct"][:3]
    assert not (folder / "scores.json").exists()
    assert read_json(folder / "status.json")["reason"] == "evaluated on the first 3 of 8 prompts"
    check(run_entry(home, "run_inference.py", *DATA, *EVALUATES))
    assert (folder / "responses.jsonl").read_text() == straight.read_text()
    assert read_json(folder / "scores.json") == whole


@pytest.fixture(scope="module")
def found(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a search that was killed in its second round, and started again."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("search") / "home")
    folder = home / "outputs/reports/found"
    process = start_entry(home, "cli.py", *SEARCH)
    until = time.monotonic() + 300
    while len(_rounds(folder)) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait(60)
    before = _rounds(folder)
    assert len(before) == 2
    done = check(run_entry(home, "cli.py", *SEARCH))
    assert "search: ends after" in done.stderr
    assert "The search ran 2 of the 3 splits of the grid" in done.stdout
    assert _rounds(folder)[:2] == before
    return home


def _rounds(folder: Path) -> list[object]:
    with contextlib.suppress(OSError):
        return list(json.loads((folder / "search.json").read_text())["rounds"])
    return []


def test_a_killed_search_continues_with_the_decisions_of_its_results(found: Path):
    folder = found / "outputs/reports/found"
    record = Record.read(folder)
    assert record is not None and record.rounds[-1].end
    stages = arms_of(record.plan)
    search = Search(arms=tuple(stages), config=record.config)
    plan = Plan.from_json(read_json(folder / "plan.json"))
    for number, made in enumerate(record.rounds):
        done = actions(record.rounds[:number])
        seen = results(plan, {a: of for a, of in stages.items() if a.key in done}, found)
        for arm in seen:
            if done[arm.key] == SCREEN:  # evaluated on all prompts only later
                seen[arm] = _first(plan, stages[arm][0].name, found)
        assert decide(search, record.rounds[:number], seen) == made


def _first(plan: Plan, name: str, home: Path) -> Result:
    """The result of an arm when it had seen the first half of eight prompts."""
    evaluation = standing(plan, plan.stage(name), home).evaluation
    assert evaluation is not None
    scores = read_json(evaluation.path / first_scores(4))
    return Result(first=Measure.of(scores["correct"], scores["samples"]))


def test_a_search_trains_what_it_chose_and_nothing_twice(found: Path):
    record = Record.read(found / "outputs/reports/found")
    assert record is not None
    runs = {path.name for path in (found / "models").iterdir()} - {"tiny"}
    chosen = actions(record.rounds)
    arms = {arm.key: [stage.name for stage in of] for arm, of in arms_of(record.plan).items()}
    assert {name for key in chosen for name in arms[key]} <= runs
    assert not runs & {name for key in arms.keys() - chosen for name in arms[key]}
    before = {path: path.stat().st_mtime_ns for path in found.rglob("status.json")}
    check(run_entry(found, "cli.py", *SEARCH))
    assert {path: path.stat().st_mtime_ns for path in found.rglob("status.json")} == before
