"""Files of answers, scored by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.evaluation import gsm8k_evaluate, ifeval_evaluate
from tuning.runs.atomic import read_object
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

PUBLISHED = Path(__file__).parents[1] / "tasks"
COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory) -> Path:
    root = tmp_path_factory.getbasetemp() / "evaluated-files"
    root.mkdir(exist_ok=True)
    return use(monkeypatch, root)


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_published_verdicts_give_the_official_figures(tmp_path, capsys):
    rows = [json.loads(line) for line in (PUBLISHED / "ifeval_verdicts.jsonl").open()]
    responses = lines(
        tmp_path / "r.jsonl", [{k: r[k] for k in ("prompt", "response")} for r in rows]
    )
    prompts = [
        {"key": n, **{k: r[k] for k in ("prompt", "instruction_id_list", "kwargs")}}
        for n, r in enumerate(rows)
    ]
    words = [
        "--prompts",
        lines(tmp_path / "p.jsonl", prompts),
        "--output",
        str(tmp_path / "s.json"),
    ]
    assert ifeval_evaluate.main([responses, *words]) == 0
    scores = read_object(tmp_path / "s.json") or {}
    flat = {kind: [v for r in rows for v in r[kind]] for kind in ("strict", "loose")}
    assert scores["correct"] == [int(all(r["strict"])) for r in rows]
    parts = {name: part["estimate"] for name, part in scores["parts"].items()}
    assert parts == pytest.approx(
        {
            "prompt_loose": sum(all(r["loose"]) for r in rows) / len(rows),
            "instruction_strict": sum(flat["strict"]) / len(flat["strict"]),
            "instruction_loose": sum(flat["loose"]) / len(flat["loose"]),
        },
        abs=1e-6,
    )
    assert "instruction_strict  0." in capsys.readouterr().out


def test_lines_may_bring_what_they_are_graded_by(tmp_path, capsys):
    rows = [
        {"prompt": "2 + 3?", "responses": ["#### 5", "#### 6"], "answer": 5},
        {
            "prompt": [{"role": "user", "content": "1 + 1?"}],
            "responses": ["#### 2", "2"],
            "answer": 2,
        },
    ]
    assert gsm8k_evaluate.main([lines(tmp_path / "r.jsonl", rows)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "math: 2 prompts x 2 responses"
    assert [line.split()[:2] for line in printed[1:]] == [
        ["pass@1", "0.5000"],
        ["pass@2", "1.0000"],
        ["format", "0.7500"],
    ]


def test_problems_are_found_by_what_they_ask(tmp_path, capsys):
    prompts = [{"question": "2 + 3?", "answer": "so <<2+3=5>>5\n#### 5"}]
    asked = ["2 + 3?", "Question: 2 +  3?\nAnswer:"]
    rows = [{"prompt": prompt, "response": "#### 5"} for prompt in asked]
    words = ["--prompts", lines(tmp_path / "test.jsonl", prompts)]
    assert gsm8k_evaluate.main([lines(tmp_path / "r.jsonl", rows), *words]) == 0
    assert "pass@1  1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"response": "x", **COMMA}], r"r\.jsonl:1 lacks prompt"),
        ([{"prompt": ["p"], "response": "x", **COMMA}], r"r\.jsonl:1 lacks prompt: text, or a"),
        ([{"prompt": [{"role": "user"}], "response": "x", **COMMA}], "jsonl:1 lacks prompt: text"),
        ([{"prompt": "p", **COMMA}], r"r\.jsonl:1: give response as text"),
        ([{"prompt": "p", "responses": [], **COMMA}], "give response as text"),
        ([{"prompt": "p", "response": 3, **COMMA}], "give response as text"),
        ([{"prompt": "p", "response": "x", **COMMA, "kwargs": []}], "an object for each instruct"),
        (
            [{"prompt": f"p{n}", "responses": ["x"] * n, **COMMA} for n in (1, 2)],
            "different numbers of responses",
        ),
        (
            [{"prompt": "p", "response": "x", **COMMA} for _ in range(2)],
            r"r\.jsonl:2 has the prompt of r\.jsonl:1",
        ),
    ],
)
def test_lines_that_cannot_be_graded_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        ifeval_evaluate.main([lines(tmp_path / "r.jsonl", rows)])


def test_a_prompt_that_is_in_no_test_set_is_named(tmp_path):
    prompts = lines(tmp_path / "p.jsonl", [{"key": 1, "prompt": "p", **COMMA}])
    rows = lines(tmp_path / "r.jsonl", [{"prompt": "another", "response": "x"}])
    with pytest.raises(UserError, match="lacks instruction_id_list, kwargs, and its prompt is not"):
        ifeval_evaluate.main([rows, "--prompts", prompts])
    with pytest.raises(UserError, match=r"none\.jsonl' cannot be read"):
        ifeval_evaluate.main([str(tmp_path / "none.jsonl")])
