"""One reader of JSON: a value that can be written again, or one line."""

from __future__ import annotations

import json

import pytest

from tuning.config import DatasetEntry
from tuning.data.jsonl import JsonLines
from tuning.engine.sources import read_rows
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.json_text import NotJSON, parse, parse_object
from tuning.runs.rundir import RunDirectory, read_lines

pytestmark = pytest.mark.unit

DAMAGED = {
    "half": '{"a": ',
    "word": '{"a": nan}',
    "long": '{"a": 1' + "0" * 5000 + "}",
    "surrogate": '{"a": "\\ud83d"}',
    "surrogate-key": '{"\\udc00": 1}',
    "deep": '{"a": ' + "[" * 101 + "]" * 101 + "}",
    "deepest": "[" * 100_000,
    "deep-objects": '{"a":' * 120 + "1" + "}" * 120,
}
NO_NUMBER = {"nan": '{"a": NaN}', "infinite": '{"a": -Infinity}', "large": '{"a": 1e999}'}


@pytest.mark.parametrize("text", (DAMAGED | NO_NUMBER).values(), ids=(DAMAGED | NO_NUMBER).keys())
def test_what_no_row_may_hold_is_one_line_that_names_the_place(text):
    with pytest.raises(NotJSON, match=r"^rows\.jsonl:7 is not valid JSON: [^\n]{1,80}\.$"):
        parse(text, "rows.jsonl:7")


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_both_kinds_of_rows_are_read_by_it(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text + "\n")
    for read in (
        JsonLines(DatasetEntry(name="mine", loader="jsonl", files={"sft": str(path)})).pool,
        lambda _: read_rows(path),
    ):
        with pytest.raises(UserError, match=r"rows\.jsonl:1 is not valid JSON"):
            read("sft")


def test_what_is_whole_is_read():
    assert parse('{"a": "\\ud83d\\ude42 [{"}', "x") == {"a": "🙂 [{"}
    assert parse("[" * 100 + "]" * 100, "x") is not None
    assert parse('["' + "[{" * 500 + '"]', "x") == ["[{" * 500]
    assert parse("NaN", "x", nan=True) != parse("NaN", "x", nan=True)
    with pytest.raises(NotJSON, match=r"x is \[1\], not a JSON object"):
        parse_object("[1]", "x")


@pytest.mark.parametrize("text", [*DAMAGED.values(), "[1]", '"x"', "3"])
def test_a_damaged_file_of_a_run_is_one_line(tmp_path, text):
    for name in ("config", "status", "result"):
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(UserError, match=f"{name}.json' is [^\n]*$"):
            getattr(RunDirectory(tmp_path), name)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="is not UTF-8 text"):
        atomic.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("line", [b"[1]", b'{"a": "\xff"}', b'{"a": "\\udc00"}', b"9" * 5000])
def test_lines_of_a_run_are_read_up_to_a_damaged_one(tmp_path, line, said):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n' + line + b'\n{"step": 3}\n')
    assert [row["step"] for row in read_lines(path)] == [1]
    assert said == [f"warning: {path} has a damaged line; the rest is ignored"]


def test_metrics_without_a_step_are_dropped_when_a_run_goes_back(tmp_path):
    lines = [{"step": 1}, {"loss": 1.0}, {"step": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    RunDirectory(tmp_path).rewind_metrics(1)
    assert RunDirectory(tmp_path).metrics() == [{"step": 1}]


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(NotJSON, match='row is not valid JSON: it gives the key "a" twice'):
        parse('{"a": 1, "b": {"a": 2}, "a": 3}', "row")
    assert parse('{"a": 1, "b": {"a": 2}}', "row") == {"a": 1, "b": {"a": 2}}
