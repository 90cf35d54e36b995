"""One's own JSON lines: good files and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuning.config import DatasetEntry
from tuning.data.jsonl import JsonLines
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

GOOD: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"s{n}", "completion": f"c{n}"} for n in range(3)],
    "validation": [{"prompt": "v", "completion": "c"}],
    "preference": [{"prompt": "p", "chosen": "good", "rejected": "bad", "answer": 7}],
    "test": [{"prompt": "t", "answer": 12}],
}


def write(root: Path, pool: str, rows: list[Any]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / f"{pool}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def loader(root: Path, system_message: str | None = None, **pools: list[Any]) -> JsonLines:
    for pool, rows in (GOOD | pools).items():
        write(root, pool, rows)
    files = {pool: str(root / f"{pool}.jsonl") for pool in GOOD}
    entry = DatasetEntry(name="mine", loader="jsonl", files=files, system_message=system_message)
    return JsonLines(entry)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_strings_become_messages_and_the_rest_stays(tmp_path):
    made = loader(tmp_path)
    assert made.pool("sft")[1] == {"prompt": user("s1"), "completion": assistant("c1")}
    assert made.pool("validation") == [{"prompt": user("v"), "completion": assistant("c")}]
    assert made.pool("preference") == [
        {
            "prompt": user("p"),
            "chosen": assistant("good"),
            "rejected": assistant("bad"),
            "answer": 7,
        }
    ]
    assert made.pool("test") == [{"prompt": user("t"), "answer": 12}]
    assert {pool: made.size(pool) for pool in GOOD} == {
        "sft": 3,
        "validation": 1,
        "preference": 1,
        "test": 1,
    }


def test_messages_stay_as_they_are(tmp_path):
    prompt = [{"role": "system", "content": "brief"}, *user("2+3?")]
    made = loader(tmp_path, sft=[{"prompt": prompt, "completion": assistant("5")}])
    assert made.pool("sft") == [{"prompt": prompt, "completion": assistant("5")}]


def test_a_system_message_is_that_of_prompts_without_one_in_every_pool(tmp_path):
    asks = {"role": "system", "content": "End with #### NUMBER."}
    own = [{"role": "system", "content": "brief"}, *user("2+3?")]
    sft = [{"prompt": own, "completion": "5"}, {"prompt": "s", "completion": "c"}]
    plain, made = loader(tmp_path, sft=sft), loader(tmp_path, asks["content"], sft=sft)
    assert [row["prompt"] for row in made.pool("sft")] == [own, [asks, *user("s")]]
    for pool in ("validation", "preference", "test"):
        assert made.pool(pool)[0]["prompt"] == [asks, *plain.pool(pool)[0]["prompt"]]
        assert made.version((pool,)) != plain.version((pool,))


@pytest.mark.parametrize("text", ["ä 🙂", "two\nlines", "a\u2028b", "a\u0085b", "a\x1db"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_text_may_stand_in_a_line(tmp_path, text, ascii_only):
    row = {"prompt": text, "completion": "c"}
    made = loader(tmp_path, sft=[json.dumps(row, ensure_ascii=ascii_only)])
    assert made.pool("sft")[0]["prompt"] == user(text)


def test_empty_lines_and_windows_line_ends_do_no_harm(tmp_path):
    made = loader(tmp_path)
    lines = [json.dumps(row) for row in GOOD["sft"]]
    (tmp_path / "sft.jsonl").write_bytes("\r\n\r\n".join(lines).encode())
    assert [row["prompt"] for row in made.pool("sft")] == [user(f"s{n}") for n in range(3)]


@pytest.mark.parametrize(
    ("pool", "bad", "message"),
    [
        ("sft", '{"prompt": ', "sft.jsonl:2 is not valid JSON"),
        ("sft", "x", "sft.jsonl:2 is not valid JSON"),
        ("sft", {}, "sft.jsonl:2 lacks prompt; every row has one."),
        ("sft", [], "sft.jsonl:2"),
        ("sft", '"prompt completion"', "sft.jsonl:2"),
        ("sft", "3", "sft.jsonl:2"),
        ("sft", "null", "sft.jsonl:2"),
        ("sft", {"prompt": 3, "completion": "c"}, "sft.jsonl:2"),
        ("sft", {"prompt": None, "completion": "c"}, "sft.jsonl:2"),
        ("sft", {"prompt": "x", "completion": None}, "sft.jsonl:2"),
        ("sft", {"prompt": [], "completion": "c"}, "sft.jsonl:2"),
        ("sft", {"prompt": ["x"], "completion": "c"}, "sft.jsonl:2"),
        ("sft", {"prompt": [{"role": "user"}], "completion": "c"}, "sft.jsonl:2"),
        ("preference", {"prompt": "x", "chosen": 3}, "preference.jsonl:2: chosen is 3; it must"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line(tmp_path, pool, bad, message):
    made = loader(tmp_path, **{pool: [*GOOD[pool][:1], bad]})
    with pytest.raises(UserError) as caught:
        made.pool(pool)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pool", "bad", "columns", "lacks"),
    [
        ("sft", {"prompt": "x"}, ("prompt",), {"completion"}),
        ("validation", {"prompt": "x"}, ("prompt",), {"completion"}),
        ("preference", {"prompt": "x", "chosen": "a"}, ("prompt", "chosen"), {"rejected"}),
        ("test", {"prompt": "x", "ids": [1]}, ("prompt",), {"answer", "ids"}),
    ],
)
def test_a_pool_has_the_columns_that_every_row_has(tmp_path, pool, bad, columns, lacks):
    made = loader(tmp_path, **{pool: [*GOOD[pool][:1], "", bad]})
    assert made.columns(pool) >= set(columns)
    assert not made.columns(pool) & lacks
    assert [made.where(pool, number) for number in (0, 1)] == [f"{pool}.jsonl:1", f"{pool}.jsonl:3"]


def test_a_file_that_is_no_text_is_the_users_mistake(tmp_path):
    made = loader(tmp_path)
    (tmp_path / "sft.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(UserError, match=r"sft\.jsonl"):
        made.pool("sft")


def test_a_missing_file_and_a_missing_pool_are_named(tmp_path):
    made = loader(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl' cannot be read \(No such file"):
        made.pool("test")
    with pytest.raises(UserError, match=r"test\.jsonl' cannot be read"):
        made.version(("test",))
    entry = DatasetEntry(name="mine", loader="jsonl", files={"sft": str(tmp_path / "sft.jsonl")})
    only_sft = JsonLines(entry)
    with pytest.raises(UserError, match="'mine' has no test pool; add a line 'test: FILE'"):
        only_sft.pool("test")


def test_a_prompt_that_stands_twice_in_a_pool_is_refused(tmp_path):
    made = loader(tmp_path, sft=[*GOOD["sft"], GOOD["sft"][0]])
    with pytest.raises(UserError, match="the sft pool repeats a prompt"):
        made.pool("sft")


def test_a_prompt_that_two_pools_share_is_refused(tmp_path):
    for pool in ("validation", "test", "sft"):
        made = loader(tmp_path, test=[{"prompt": "s1", "answer": 1}, *GOOD["test"]])
        with pytest.raises(UserError, match="a prompt is both in sft and test"):
            made.pool(pool)


@pytest.mark.parametrize(
    "prompt",
    ["  T", "t\u200b", "\uff54", [*user("t"), *assistant("a"), *user("and now?")]],
    ids=["case", "zero width", "compatible", "first turn"],
)
def test_a_variant_of_a_test_prompt_is_refused_in_the_other_pools(tmp_path, prompt):
    for pool in ("sft", "validation", "preference"):
        made = loader(tmp_path, **{pool: [GOOD[pool][0] | {"prompt": prompt}]})
        with pytest.raises(UserError, match=f"a prompt is both in {pool} and test"):
            made.pool("test")
    again = [{"prompt": "t", "answer": 1}, {"prompt": "T", "answer": 1}]
    assert loader(tmp_path, test=again).size("test") == 2


def test_a_file_that_is_not_there_stops_those_only_who_read_it(tmp_path):
    made = loader(tmp_path)
    (tmp_path / "preference.jsonl").unlink()
    assert made.size("sft") == 3
    with pytest.raises(UserError, match=r"preference\.jsonl' cannot be read \(No such file"):
        made.pool("preference")
    write(tmp_path, "preference", GOOD["preference"])
    assert made.size("preference") == 1
    made = loader(tmp_path, test=[{"prompt": "s1", "answer": 1}])
    (tmp_path / "preference.jsonl").unlink()
    with pytest.raises(UserError, match="a prompt is both in sft and test"):
        made.pool("sft")


def test_unpaired_rows_may_share_a_prompt(tmp_path):
    rows = [{"prompt": "p", "completion": text, "label": text == "a"} for text in "ab"]
    made = loader(tmp_path, preference=rows)
    assert made.pool("preference")[0] == {
        "prompt": user("p"), "completion": assistant("a"), "label": True,
    }  # fmt: skip
    with pytest.raises(UserError, match="the preference pool repeats a prompt"):
        loader(tmp_path, preference=[*rows, rows[0]]).pool("preference")


def test_what_was_refused_once_stays_refused(tmp_path):
    made = loader(tmp_path, sft=[*GOOD["sft"], GOOD["sft"][0]])
    for _ in range(2):
        with pytest.raises(UserError, match="repeats a prompt"):
            made.pool("sft")


@pytest.mark.parametrize("pool", GOOD)
def test_the_version_changes_with_the_content_of_every_pool(tmp_path, pool):
    made = loader(tmp_path)
    before = made.version((pool,))
    assert before == loader(tmp_path).version((pool,))
    others = tuple(name for name in GOOD if name != pool)
    unchanged = made.version(others)
    assert len(before) == 16
    write(tmp_path, pool, [*GOOD[pool], {"prompt": "new"}])
    files = {name: str(tmp_path / f"{name}.jsonl") for name in GOOD}
    entry = DatasetEntry(name="mine", loader="jsonl", files=files)
    assert JsonLines(entry).version((pool,)) != before
    assert JsonLines(entry).version(others) == unchanged


def test_the_version_does_not_depend_on_where_the_files_lie(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert loader(tmp_path / "a").version(tuple(GOOD)) == loader(tmp_path / "b").version(
        tuple(GOOD)
    )
