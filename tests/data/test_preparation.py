"""Published rows become pools: real rows of GSM8K and IFEval, and made ones of other forms."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path

import pytest

from tests.conftest import check, run_script
from tests.small_site import use
from tuning.config import CHECKOUT, DatasetEntry
from tuning.data.division import PER_PROMPT, divide
from tuning.data.loaders import forget, loader
from tuning.data.preparation import folder_of, manifest_of, prepare
from tuning.data.recipes import RECIPES
from tuning.data.rows import prompt_key
from tuning.runs.errors import UserError
from tuning.tasks import instruction, math

pytestmark = pytest.mark.unit

GSM8K = DatasetEntry(name="gsm8k", loader="gsm8k")
TULUIF = DatasetEntry(name="tuluif", loader="tuluif")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    forget()
    return use(monkeypatch, tmp_path)


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problem(n: int) -> str:
    return f"Tom has {n} pens and buys {n} more. How many has he?"


def train(n: int) -> dict:
    """A row as OpenAI published them."""
    return {
        "question": problem(n),
        "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}",
    }


def labelled(n: int) -> dict:
    """A row of OpenAI's labelled solutions."""
    right = {"is_correct": True, "solution": f"He has {n}+{n}={2 * n}.\nA: {2 * n}"}
    wrong = {"is_correct": False, "solution": f"He has {n}.\nA: {n}"}
    return {
        "question": problem(n), "ground_truth": f"so {2 * n}\nA: {2 * n}", "a": right, "b": wrong,
        "c": right | {"solution": f"2 * {n} = {2 * n}\nA: {2 * n}"},
    }  # fmt: skip


def generations(n: int) -> dict:
    """A row with many solutions, as the study's own dataset has them."""
    return {
        "prompt": f"Question: {problem(n)}\nAnswer:",
        "correct": [f"way {k}\n#### {2 * n}" for k in range(4)],
        "incorrect": [f"wrong {k}\n#### {n + k}" for k in range(4)],
        "reference_answer": f"#### {2 * n}",
    }


def gsm8k(tmp_path: Path) -> dict:
    return prepare(
        "gsm8k",
        RECIPES["gsm8k"],
        {
            "sft": lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 61)]),
            "preference": lines(tmp_path / "pref.jsonl", [labelled(n) for n in range(31, 91)]),
            "test": lines(tmp_path / "test.jsonl", [train(n) for n in (5, 40, 95, 95, 96)]),
        },
    )


def test_a_prompt_is_in_one_pool_only(tmp_path):
    manifest = gsm8k(tmp_path)
    opened = loader(GSM8K)
    prompts = {
        pool: {prompt_key(row["prompt"]) for row in opened.pool(pool)} for pool in manifest["pools"]
    }
    assert set(prompts) == {"sft", "preference", "validation", "test"}
    for one, other in combinations(prompts.values(), 2):
        assert not one & other
    assert len(prompts["test"]) == 4
    assert len(set.union(*prompts.values())) == 92
    assert len(prompts["validation"]) == 5
    assert min(len(prompts["sft"]), len(prompts["preference"])) > 25
    counted = {pool: about["prompts"] for pool, about in manifest["pools"].items()}
    assert counted == {pool: len(found) for pool, found in prompts.items()}
    assert manifest["dropped"]["test prompts that occur twice"] == 1
    assert manifest["dropped"]["sft rows of test prompts"] == 2


def test_rows_ask_and_answer_as_the_task_reads(tmp_path):
    gsm8k(tmp_path)
    opened = loader(GSM8K)
    for pool in ("sft", "preference", "validation", "test"):
        for row in opened.pool(pool):
            system, user = row["prompt"]
            assert system == {"role": "system", "content": math.SYSTEM_MESSAGE}
            assert user["content"].startswith("Question: Tom has ")
            assert user["content"].endswith("?\nAnswer:")
            assert math.accepts(row) is None
    for row in opened.pool("sft"):
        text = row["completion"][0]["content"]
        assert math.grade(text, row).right and "<<" not in text
    for row in opened.pool("preference"):
        assert math.grade(row["chosen"][0]["content"], row).right
        wrong = math.grade(row["rejected"][0]["content"], row)
        assert not wrong.right and wrong.parts["format"]


def test_pairs_are_the_product_of_solutions_up_to_a_cap(tmp_path):
    source = lines(tmp_path / "pref.jsonl", [generations(n) for n in range(1, 5)])
    made = prepare("gsm8k", RECIPES["gsm8k"], {"preference": source})
    assert made["sources"]["preference"]["rows"] == 4 * 16
    assert made["pools"]["preference"]["rows"] == 4 * PER_PROMPT
    assert made["dropped"] == {f"pairs beyond {PER_PROMPT} of a prompt": 32}
    made = prepare("other", RECIPES["gsm8k"], {"sft": source})
    assert made["sources"]["sft"]["rows"] == 4 * 4


def test_the_pools_do_not_depend_on_the_order_in_which_sources_are_read(tmp_path, monkeypatch):
    sources = {
        "sft": lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 61)]),
        "preference": lines(tmp_path / "pref.jsonl", [labelled(n) for n in range(31, 91)]),
    }
    once = prepare("gsm8k", RECIPES["gsm8k"], sources)
    monkeypatch.setenv("TUNING_HOME", str(tmp_path / "other"))
    for kind in ("preference", "sft"):
        made = prepare("gsm8k", RECIPES["gsm8k"], {kind: sources[kind]})
    assert made["pools"] == once["pools"]


def test_a_smaller_source_gives_a_part_in_the_same_order(tmp_path):
    """What becomes of a prompt does not depend on the others."""
    few, many = ([train(n) for n in range(1, 300)][:n] for n in (150, 299))
    pools = []
    for name, rows in (("few", few), ("many", many)):
        made = prepare(name, RECIPES["gsm8k"], {"sft": lines(tmp_path / f"{name}.jsonl", rows)})
        assert made["pools"]["validation"]["rows"] == len(rows) // 10
        pools.append(
            [row["prompt"] for row in loader(DatasetEntry(name=name, loader="gsm8k")).pool("sft")]
        )
    asked = {prompt[-1]["content"] for prompt in pools[0]}
    common = [prompt for prompt in pools[1] if prompt[-1]["content"] in asked]
    assert common == [prompt for prompt in pools[0] if prompt in common]


def test_a_source_is_read_once_until_it_changes(tmp_path, said):
    source = lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 31)])
    first = prepare("gsm8k", RECIPES["gsm8k"], {"sft": source})
    assert prepare("gsm8k", RECIPES["gsm8k"], {"sft": source}) == first
    assert said == [f"gsm8k: sft is here already, from {source}"]
    lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 32)])
    assert prepare("gsm8k", RECIPES["gsm8k"], {"sft": source})["sources"]["sft"]["rows"] == 31


def test_what_was_read_of_another_source_is_not_taken_for_this_one(tmp_path):
    """A source may be read and the next one fail, before the manifest is written."""
    one = lines(tmp_path / "one.jsonl", [train(n) for n in range(1, 31)])
    two = lines(tmp_path / "two.jsonl", [train(n) for n in range(31, 61)])
    first = prepare("gsm8k", RECIPES["gsm8k"], {"sft": one})
    with pytest.raises(UserError, match="no such file"):
        prepare("gsm8k", RECIPES["gsm8k"], {"sft": two, "test": str(tmp_path / "none.jsonl")})
    assert prepare("gsm8k", RECIPES["gsm8k"], {"sft": one}) == first
    (folder_of("gsm8k") / "raw/sft.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"raw/sft\.jsonl' is not what was read of '.*one\.jsonl'"):
        prepare(
            "gsm8k", RECIPES["gsm8k"], {"preference": lines(tmp_path / "p.jsonl", [labelled(9)])}
        )


def test_a_file_name_is_no_pattern(tmp_path):
    lines(tmp_path / "a1.jsonl", [train(n) for n in range(1, 4)])
    source = lines(tmp_path / "a[1].jsonl", [train(n) for n in range(1, 31)])
    assert prepare("gsm8k", RECIPES["gsm8k"], {"sft": source})["sources"]["sft"]["rows"] == 30


def test_where_no_row_is_left_it_says_why(tmp_path):
    source = lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 31)])
    with pytest.raises(UserError, match="no row is left for the sft pool of 'gsm8k': 30 sft"):
        prepare("gsm8k", RECIPES["gsm8k"], {"sft": source, "test": source})


@pytest.mark.parametrize(
    "damage", [{"format": 2}, {"sources": []}, {"pools": {"sft": 3}}, {"pools": {"sft": {}}}]
)
def test_a_damaged_manifest_is_one_line(tmp_path, damage):
    gsm8k(tmp_path)
    path = folder_of("gsm8k") / "manifest.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | damage if damage != {"format": 2} else damage))
    with pytest.raises(UserError, match="was edited or damaged"):
        loader(GSM8K).size("sft")


def test_planning_reads_the_manifest_only(tmp_path):
    gsm8k(tmp_path)
    for file in folder_of("gsm8k").glob("*.jsonl"):
        file.unlink()
    opened = loader(GSM8K)
    assert opened.size("sft") > 25
    assert {"prompt", "completion", "answer"} <= opened.columns("sft")
    assert len(opened.version(("sft", "validation"))) == 16
    with pytest.raises(
        UserError, match="is not what the manifest beside it says; make the dataset"
    ):
        opened.pool("sft")


def test_what_cannot_be_used_is_counted_with_its_first_place(tmp_path):
    rows = [train(1), {"question": "", "answer": "x"}, {"question": "2 + 2?", "answer": None}]
    made = prepare("gsm8k", RECIPES["gsm8k"], {"sft": lines(tmp_path / "train.jsonl", rows)})
    assert made["sources"]["sft"]["left_out"] == {
        "has no question": {"rows": 1, "first": "train.jsonl:2"},
        "has no correct solution": {"rows": 1, "first": "train.jsonl:3"},
    }
    with pytest.raises(
        UserError, match=r"no row of .*none\.jsonl' can be used as sft data: has no q"
    ):
        prepare("gsm8k", RECIPES["gsm8k"], {"sft": lines(tmp_path / "none.jsonl", rows[1:2])})


def test_files_of_other_formats_and_sources_that_are_none(tmp_path):
    import pandas

    frame = pandas.DataFrame([train(n) for n in range(1, 21)])
    frame.to_parquet(tmp_path / "train.parquet")
    frame.to_csv(tmp_path / "train.csv", index=False, quoting=csv.QUOTE_ALL)
    found = [
        prepare(kind, RECIPES["gsm8k"], {"sft": str(tmp_path / f"train.{kind}")})["pools"]
        for kind in ("parquet", "csv")
    ]
    assert found[0] == found[1]
    (tmp_path / "bad.jsonl").write_text("{")
    for source, message in (
        (str(tmp_path / "bad.jsonl"), "cannot be read"),
        (str(tmp_path / "gone.parquet"), "there is no such file"),
        ("train", "'train' is no source; it must be a file"),
    ):
        with pytest.raises(UserError, match=message):
            prepare("other", RECIPES["gsm8k"], {"sft": source})
    assert manifest_of("other") is None


def test_instructions_of_tulu_and_ifeval(tmp_path):
    def turn(role: str, text: str) -> dict:
        return {"role": role, "content": text}

    asked = [f"Write about {n} without commas." for n in range(40)]
    sft = [
        {"id": n, "prompt": text, "messages": [turn("user", text), turn("assistant", "fine")],
         "constraints": ["no commas"]}
        for n, text in enumerate(asked[:30])
    ]  # fmt: skip
    sft[3]["messages"][-1]["content"] = "word " * 1100
    pairs = [
        {"prompt": text, "chosen": [turn("user", text), turn("assistant", "fine")],
         "rejected": [turn("user", text), turn("assistant", "no, well")]}
        for text in asked[20:]
    ]  # fmt: skip
    test = [
        {"key": 7, "prompt": asked[0], "instruction_id_list": ["punctuation:no_comma"],
         "kwargs": [{"num_words": None, "relation": None}]},
        {"key": 8, "prompt": "Say.", "instruction_id_list": ["a:b"], "kwargs": [{}]},
    ]  # fmt: skip
    made = prepare(
        "tuluif",
        RECIPES["tuluif"],
        {
            "sft": lines(tmp_path / "sft.jsonl", sft),
            "preference": lines(tmp_path / "pref.jsonl", pairs),
            "test": lines(tmp_path / "test.jsonl", test),
        },
    )
    assert list(made["sources"]["sft"]["left_out"]) == ["has 1024 words or more"]
    assert made["sources"]["test"]["rows"] == 1
    opened = loader(TULUIF)
    for row in opened.pool("preference"):
        assert [m["role"] for m in row["prompt"]] == ["system", "user"]
        assert (row["chosen"][0]["content"], len(row["chosen"])) == ("fine", 1)
    (graded,) = opened.pool("test")
    assert instruction.accepts(graded) is None and graded["key"] == 7
    assert made["dropped"]["sft rows of test prompts"] == 1


def test_what_was_read_before_is_kept_where_no_source_is_named(tmp_path, said):
    """A test set that a file gave is not fetched from the hub by the script of the other kind."""
    from tuning.data.gsm8k_pref import main as pref
    from tuning.data.gsm8k_sft import main as sft

    source = lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 61)])
    pairs = lines(tmp_path / "pref.jsonl", [labelled(n) for n in range(31, 91)])
    test = lines(tmp_path / "test.jsonl", [train(n) for n in (5, 40)])
    assert sft(["--source", source, "--test_source", test]) == 0
    Path(test).unlink()
    assert pref(["--source", pairs]) == 0
    assert said == [f"gsm8k: test is here already, from {test}"]
    whole = manifest_of("gsm8k")
    assert whole is not None and set(whole["pools"]) == {"sft", "preference", "validation", "test"}
    with pytest.raises(UserError, match=f"'{test}' cannot be read: there is no such file"):
        pref(["--force"])
    lines(tmp_path / "test.jsonl", [train(n) for n in (5, 40, 41)])
    assert pref(["--force"]) == 0
    forced = manifest_of("gsm8k")
    assert forced is not None and forced["pools"]["test"]["rows"] == 3
    assert forced["sources"]["sft"] == whole["sources"]["sft"]
    other = lines(tmp_path / "other.jsonl", [train(7)])
    assert sft(["--test_source", other]) == 0
    changed = manifest_of("gsm8k")
    assert changed is not None and changed["sources"]["test"]["source"] == other
    (folder_of("gsm8k") / "raw/test.jsonl").unlink()
    Path(other).unlink()
    with pytest.raises(UserError, match="there is no such file"):
        pref([])


def test_a_test_prompt_in_another_spelling_or_as_a_first_turn_is_in_no_other_pool():
    def row(*texts: str, **more) -> dict:
        roles = ("user", "assistant", "user")
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return {"prompt": turns} | more

    pools, dropped = divide(
        {
            "test": [row("What is 2 + 2?")],
            "sft": [row("what is  2 + 2?"), row("What is 2\u200b + 2?", "4", "And 3?"), row("x")],
            "preference": [row("X"), row("y")],
        }
    )
    assert dropped["sft rows of test prompts"] == 2
    assert sorted(len(pools.get(pool, ())) for pool in ("sft", "preference")) in ([0, 2], [1, 1])


@pytest.mark.parametrize("keeps", [2, 4])
def test_sft_keeps_its_share_of_the_prompts_that_both_have(keeps):
    def rows(first: int, last: int) -> list[dict]:
        return [
            {"prompt": [{"role": "user", "content": f"{n}?"}], "n": n} for n in range(first, last)
        ]

    pools, _ = divide({"sft": rows(0, 6000), "preference": rows(2000, 6000)}, keeps)
    kept = [row for row in (*pools["sft"], *pools["validation"]) if row["n"] >= 2000]
    held = sum(row["n"] >= 2000 for row in pools["validation"])
    assert len(kept) + len(pools["preference"]) == 4000
    assert (len(kept) - held) / (4000 - held) == pytest.approx(1 / keeps, abs=0.02)


def test_the_scripts_make_a_dataset_and_say_what_was_left_out(tmp_path):
    source = lines(tmp_path / "train.jsonl", [train(n) for n in range(1, 31)])
    pairs = lines(tmp_path / "pref.jsonl", [labelled(n) for n in (50, 51)] + [train(52)])
    home = tmp_path / "scripts"
    for script, file in (("gsm8k_sft.py", source), ("gsm8k_pref.py", pairs)):
        words = ("--source", file, "--test_source", "none")
        done = check(run_script(home, CHECKOUT / "tuning/data" / script, *words, cwd=tmp_path))
    assert "  sft: 27 rows, 27 prompts" in done.stdout
    assert "  preference: 4 rows, 2 prompts" in done.stdout
    assert "left out of preference: 1 that has no pair" in done.stdout
    words = ("--source", "x.jsonl", "--test_source", "none")
    script = CHECKOUT / "tuning/data/gsm8k_sft.py"
    refused = check(run_script(home, script, *words, cwd=tmp_path), 2)
    assert refused.stderr.splitlines()[-1].startswith("error: '")
