"""From responses.jsonl to scores.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.evaluation.intervals import mean_interval
from tuning.evaluation.scoring import score
from tuning.runs.atomic import read_json
from tuning.runs.errors import StageFailed
from tuning.runs.rundir import RunDirectory
from tuning.tasks.base import Grade, Task
from tuning.tasks.registry import TASKS
from tuning.training.config_training import model_config

pytestmark = pytest.mark.unit

RIGHT, WRONG, NONE = "so\n#### 5", "#### 6", "I do not know"


@pytest.fixture
def config(monkeypatch, tmp_path: Path):
    use(monkeypatch, tmp_path)
    return evaluation_config(
        model_config("tiny"), run="run", run_hash="a", dataset="arith", task="math",
        sampling=sampling_config("tiny", {"prompts": 3, "n_samples": 4, "k_values": (2, 4)}),
    )  # fmt: skip


def write(directory: Path, *responses: list[str], **columns) -> RunDirectory:
    directory.mkdir(exist_ok=True)
    columns = columns or {"answer": "5"}
    lines = [
        json.dumps({"index": i, "prompt": f"{i}?", **columns, "responses": texts})
        for i, texts in enumerate(responses)
    ]
    (directory / "responses.jsonl").write_text("".join(line + "\n" for line in lines))
    return RunDirectory(directory)


def test_scores_say_what_was_right(config, tmp_path):
    directory = write(tmp_path / "run", [RIGHT] * 4, [RIGHT, WRONG, NONE, ""], [WRONG] * 4)
    found = score(directory, config)
    assert found == read_json(tmp_path / "run" / "scores.json")
    assert (found["run_name"], found["artifact"], found["task"]) == ("run", "run", "math")
    assert (found["prompts"], found["samples"], found["hash"]) == (3, 4, config.hash)
    assert found["correct"] == [4, 1, 0]
    assert list(found["pass_at_k"]) == ["1", "2", "4"]
    estimates = [found["pass_at_k"][k]["estimate"] for k in ("1", "2", "4")]
    assert estimates == pytest.approx([(1 + 1 / 4 + 0) / 3, (1 + 1 / 2 + 0) / 3, 2 / 3], abs=1e-6)
    for entry in found["pass_at_k"].values():
        assert 0 <= entry["low"] <= entry["estimate"] <= entry["high"] <= 1


def test_the_mean_of_each_part_is_over_all_responses(config, tmp_path):
    directory = write(tmp_path / "run", [RIGHT] * 4, [RIGHT, WRONG, NONE, ""], [WRONG] * 4)
    (found,) = score(directory, config)["parts"].values()
    of_prompts = mean_interval([1.0, 0.5, 1.0])
    assert found == pytest.approx(vars(of_prompts), abs=1e-6)
    assert found["estimate"] == round(10 / 12, 6)


def test_an_answer_may_be_a_number(config, tmp_path):
    of_text = score(write(tmp_path / "run", [RIGHT, WRONG, NONE, ""]), config)
    of_number = score(write(tmp_path / "run", [RIGHT, WRONG, NONE, ""], answer=5), config)
    assert of_number == of_text


def test_a_task_without_answers_is_scored_from_the_responses_alone(config, monkeypatch, tmp_path):
    """As IFEval is: a row lists what a response must have, and each has a part."""

    def grade(response, row) -> Grade:
        parts = {
            "strict": all(word in response for word in row["words"]),
            "loose": any(word in response for word in row["words"]),
            "length": len(response),
            "each": [word in response for word in row["words"]],
        }
        return Grade(right=parts["strict"], reward=float(parts["loose"]), parts=parts)

    words = Task(name="words", columns=("words", "kwargs"), accepts=lambda row: None, grade=grade)
    monkeypatch.setitem(TASKS, "words", words)
    directory = write(
        tmp_path / "run", ["red blue", "red", "", "x"], words=["red", "blue"], kwargs=[{"n": None}]
    )
    found = score(directory, replace(config, task="words"))
    assert found["correct"] == [1]
    assert found["pass_at_k"]["2"]["estimate"] == 0.5
    means = {name: part["estimate"] for name, part in found["parts"].items()}
    assert means == {"strict": 0.25, "loose": 0.5, "length": 3.0, "each": 0.375}


def test_scoring_again_gives_the_same_file(config, tmp_path):
    directory = write(tmp_path / "run", [RIGHT] * 4, [WRONG] * 4, [NONE] * 4)
    score(directory, config)
    first = (tmp_path / "run" / "scores.json").read_bytes()
    score(directory, config)
    assert (tmp_path / "run" / "scores.json").read_bytes() == first


def test_of_beams_the_best_k_count(config, tmp_path):
    sampling = replace(config.sampling, decoding="beam")
    assert sampling.temperature == config.sampling.temperature  # which plays no part
    beams = replace(config, sampling=sampling)
    assert beams.hash == replace(beams, sampling=replace(sampling, temperature=0.1)).hash
    assert beams.hash != config.hash
    directory = write(tmp_path / "run", [WRONG, RIGHT, RIGHT, NONE], [RIGHT] * 4, [WRONG] * 4)
    found = score(directory, beams)
    assert found["first_right"] == [1, 0, None]
    assert found["parts"]["format"]["estimate"] == 1.0  # of the best ones
    estimates = [found["pass_at_k"][k]["estimate"] for k in ("1", "2", "4")]
    assert estimates == pytest.approx([1 / 3, 2 / 3, 2 / 3], abs=1e-6)


def test_all_wrong_still_has_an_interval(config, tmp_path):
    entry = score(write(tmp_path / "run", *[[WRONG] * 4] * 3), config)["pass_at_k"]["1"]
    assert (entry["estimate"], entry["low"]) == (0.0, 0.0)
    assert entry["high"] > 0.3


@pytest.mark.parametrize(
    "damaged",
    [
        '{"index": 1, "responses": ["a", "b", "c", "d"',
        '{"index": 1, "answer": "5", "responses": "abcd"}',
        '{"index": 1, "answer": "5", "responses": ["a"]}',
        '{"index": 1, "responses": ["a", "b", "c", "d"]}',
        '{"index": 1, "answer": "5", "responses": ["\\ud800", "b", "c", "d"]}',
        "[]",
    ],
)
def test_answers_that_were_damaged_are_not_scored(config, tmp_path, damaged):
    directory = write(tmp_path / "run", [RIGHT] * 4, [WRONG] * 4)
    path = directory.path / "responses.jsonl"
    first, last = path.read_text().splitlines()
    path.write_text(f"{first}\n{damaged}\n{last}\n")
    with pytest.raises(StageFailed, match=r"responses\.jsonl' is damaged in line 2; infer again"):
        score(directory, config)
    assert not (directory.path / "scores.json").exists()
