"""Datasets of collections.yaml in the forms that the hub has: from sources to pools, and who reads
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict

from tests.conftest import check, run_script
from tests.small_site import COLLECTIONS, use
from tuning import config as site
from tuning.config import CHECKOUT
from tuning.data import train_dataset
from tuning.data.loaders import forget
from tuning.data.preparation import folder_of, manifest_of, prepare
from tuning.data.prepared import NotPrepared
from tuning.data.published import recipe_of
from tuning.runs.errors import UserError
from tuning.training.config_training import preference_config, sft_config

pytestmark = pytest.mark.unit

Rows = list[dict[str, Any]]


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def asked(n: int) -> list[dict[str, str]]:
    return [turn("user", f"question {n}")]


def answered(n: int, text: str = "fine") -> list[dict[str, str]]:
    return [*asked(n), turn("assistant", text)]


FORMS: dict[str, tuple[str, Rows]] = {
    "messages": ("sft", [{"messages": answered(n), "id": n} for n in range(20)]),
    "ultrachat": (
        "sft",
        [{"prompt": f"question {n}", "messages": answered(n) + asked(n + 50) +
          [turn("assistant", "well")]} for n in range(20)],
    ),
    "completion": ("sft", [{"prompt": f"question {n}", "completion": "fine"} for n in range(20)]),
    "response": ("sft", [{"prompt": f"question {n}", "response": "fine"} for n in range(20)]),
    "pairs": (
        "preference",
        [{"prompt": f"question {n}", "chosen": "fine", "rejected": "no"} for n in range(20)],
    ),
    "ultrafeedback": (
        "preference",
        [{"prompt": f"question {n}", "chosen": answered(n), "rejected": answered(n, "no"),
          "messages": answered(n), "score_chosen": 7.5} for n in range(20)],
    ),
    "conversations": (
        "preference",
        [{"chosen": answered(n), "rejected": answered(n, "no")} for n in range(20)],
    ),
    "unpaired": (
        "preference",
        [{"prompt": f"question {n // 2}", "completion": f"a {n}", "label": n % 2 == 0}
         for n in range(20)],
    ),
    "unpaired messages": (
        "preference", [{"messages": answered(n), "label": n % 3 == 0} for n in range(20)]
    ),
    "for grpo": ("preference", [{"prompt": f"question {n}", "answer": n} for n in range(20)]),
    "test messages": ("test", [{"messages": answered(n), "answer": n} for n in range(20)]),
    "test": ("test", [{"prompt": f"question {n}", "answer": n} for n in range(20)]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    forget()
    return use(monkeypatch, tmp_path)


def lines(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def listed(monkeypatch, root: Path, **entry: Any) -> site.DatasetEntry:
    """The dataset `own` of a collections.yaml that has it."""
    content = yaml.safe_load(COLLECTIONS)
    content["datasets"]["own"] = {"loader": "published"} | entry
    for task in content["tasks"].values():
        task["datasets"].append("own")
    use(monkeypatch, root, yaml.safe_dump(content))
    site._load.cache_clear()
    forget()
    return site.collections().dataset("own")


def made(entry: site.DatasetEntry, **how: Any) -> dict[str, Any]:
    return prepare(entry.name, recipe_of(entry), **how)


def full(monkeypatch, root: Path, **more: Any) -> site.DatasetEntry:
    """A dataset with all kinds of sources, and prompts that they share."""
    return listed(
        monkeypatch,
        root,
        sft=lines(root / "s.jsonl", FORMS["completion"][1]),
        preference=lines(root / "p.jsonl", [
            {"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(10, 40)
        ]),
        test=lines(root / "t.jsonl", FORMS["test"][1][:3]),
        **more,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_conventional_form_becomes_rows(monkeypatch, tmp_path, form):
    kind, rows = FORMS[form]
    entry = listed(monkeypatch, tmp_path, **{kind: lines(tmp_path / "x.jsonl", rows)})
    manifest = made(entry)
    assert manifest["sources"][kind]["left_out"] == {}
    for row in train_dataset.rows(entry, kind):
        assert row["prompt"][-1]["role"] == "user"
        assert not row.keys() & {"messages", "score_chosen", "id", "response"}
        if kind == "sft":
            assert [m["role"] for m in row["completion"]] == ["assistant"]
        if form in ("pairs", "ultrafeedback", "conversations"):
            assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("fine", "no")
            assert len(row["prompt"]) == len(row["chosen"]) == 1
    assert train_dataset.is_unpaired(entry) is form.startswith("unpaired") if kind[0] == "p" else 1


def test_it_is_divided_as_other_published_datasets_are(monkeypatch, tmp_path):
    entry = full(monkeypatch, tmp_path, system_message="Be brief.")
    manifest = made(entry)
    prompts = {
        pool: {row["prompt"][-1]["content"] for row in train_dataset.rows(entry, pool)}
        for pool in manifest["pools"]
    }
    assert {*prompts} == {"sft", "preference", "validation", "test"}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == 40
    assert prompts["test"] == {f"question {n}" for n in range(3)}
    for pool in prompts:
        for row in train_dataset.rows(entry, pool):
            assert row["prompt"][0] == turn("system", "Be brief.")
    assert all("answer" in row for row in train_dataset.rows(entry, "test"))


def test_a_source_of_validation_takes_the_place_of_what_is_held_out(monkeypatch, tmp_path):
    rows = FORMS["completion"][1]
    entry = listed(
        monkeypatch, tmp_path,
        sft=lines(tmp_path / "s.jsonl", rows), validation=lines(tmp_path / "v.jsonl", rows[:4]),
    )  # fmt: skip
    manifest = made(entry)
    assert {p: about["rows"] for p, about in manifest["pools"].items()} == {
        "sft": 16, "validation": 4,
    }  # fmt: skip
    assert manifest["dropped"] == {"sft rows of prompts in other pools": 4}


def test_columns_may_be_called_otherwise(monkeypatch, tmp_path):
    rows = [{"question": f"q {n}", "answer": f"so #### {n}", "prompt": "x"} for n in range(20)]
    source = lines(tmp_path / "x.jsonl", rows)
    columns = {"prompt": "question", "completion": "answer"}
    entry = listed(monkeypatch, tmp_path, sft=source, columns=columns)
    made(entry)
    row = train_dataset.rows(entry, "sft", 1)[0]
    assert row["prompt"][0]["content"].startswith("q ")
    assert row["answer"] == row["completion"][0]["content"]
    entry = listed(monkeypatch, tmp_path, sft=source, columns={"prompd": "question"})
    with pytest.raises(UserError, match=r"column of dataset 'own': 'prompd'.*mean 'prompt'"):
        made(entry)
    use(monkeypatch, tmp_path, COLLECTIONS.replace("arith: {", "arith: {columns: {prompt: q}, "))
    site._load.cache_clear()
    with pytest.raises(UserError, match="columns are named for loader published only"):
        site.collections()


def test_where_no_row_fits_the_columns_are_named(monkeypatch, tmp_path):
    source = lines(tmp_path / "x.jsonl", [{"question": "q", "reply": "a"}])
    with pytest.raises(UserError, match=r"lacks prompt.*; its columns are: question, reply\."):
        made(listed(monkeypatch, tmp_path, sft=source))


def test_what_a_task_grades_by_is_carried_along(monkeypatch, tmp_path):
    rows = [{"prompt": f"q {n}", "instruction_id_list": ["punctuation:no_comma"],
             "kwargs": [{"num_words": None}], "other": 1} for n in range(5)]  # fmt: skip
    entry = listed(monkeypatch, tmp_path, test=lines(tmp_path / "x.jsonl", rows))
    made(entry)
    train_dataset.require_columns(entry, "test", ("instruction_id_list", "kwargs"), "instruction")
    assert "other" not in train_dataset.rows(entry, "test")[0]


def test_an_entry_that_was_edited_is_noticed_and_made_again(monkeypatch, tmp_path):
    entry = full(monkeypatch, tmp_path)
    with pytest.raises(NotPrepared, match=r"'own' is not here yet; make it .*prepare\.py own"):
        train_dataset.pool_size(entry, "sft")
    made(entry)
    assert train_dataset.pool_size(entry, "sft") > 5
    lines(tmp_path / "o.jsonl", FORMS["messages"][1])
    changes: dict[str, dict[str, Any]] = {
        "sft was read of 's.jsonl' and is to be 'o.jsonl'": {"sft": "o.jsonl"},
        "test was read of 't.jsonl' and is to be 'none'": {"test": None},
        "validation was read of 'none'": {"validation": "o.jsonl"},
        "columns or system_message were others": {"system_message": "x"},
    }
    named = {"sft": "s.jsonl", "preference": "p.jsonl", "test": "t.jsonl"}
    for message, change in changes.items():
        entry = listed(monkeypatch, tmp_path, **(named | change))
        with pytest.raises(NotPrepared) as caught:
            train_dataset.pool_size(entry, "sft")
        assert message in str(caught.value) and "prepare.py own" in str(caught.value)
    made(entry)
    assert train_dataset.rows(entry, "sft", 1)[0]["prompt"][0] == turn("system", "x")


def test_an_edited_source_is_noticed_by_planning_and_kept_from_no_stage(monkeypatch, tmp_path):
    (tmp_path / "pairs").mkdir()
    entry = listed(
        monkeypatch, tmp_path, preference="./pairs",
        sft=lines(tmp_path / "s.jsonl", FORMS["completion"][1]),
    )  # fmt: skip
    lines(tmp_path / "pairs/train.jsonl", FORMS["ultrafeedback"][1])
    made(entry)
    wanted = {"model": "tiny", "dataset": "own", "task": "math", "train_size": 3}
    planned = sft_config(**wanted)
    for source, form in (("s.jsonl", "response"), ("./pairs", "pairs")):
        lines(tmp_path / (source if form == "response" else "pairs/train.jsonl"), FORMS[form][1])
        with pytest.raises(NotPrepared, match=rf"'{source}' was changed since dataset 'own'"):
            sft_config(**wanted)
        assert len(planned.dataset.rows("sft", 3)) == 3
        made(entry)
        forget()
        assert sft_config(**wanted).dataset.sources == entry.sources


def test_a_copy_of_the_data_is_used_where_the_sources_are_not(monkeypatch, tmp_path):
    entry = full(monkeypatch, tmp_path)
    made(entry)
    for file in tmp_path.glob("?.jsonl"):
        file.unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home").rename(tmp_path / "elsewhere" / "home")
    content = (tmp_path / "collections.yaml").read_text()
    use(monkeypatch, tmp_path / "elsewhere", content)
    entry = site.collections().dataset("own")
    forget()
    assert len(train_dataset.rows(entry, "test")) == 3


def test_folders_are_read_with_their_splits(monkeypatch, tmp_path):
    rows, other = FORMS["messages"][1], FORMS["messages"][1][:7]
    DatasetDict(
        {"train": Dataset.from_list(rows), "dev": Dataset.from_list(other)}
    ).save_to_disk(tmp_path / "saved")  # fmt: skip
    Dataset.from_list(other).save_to_disk(tmp_path / "one")
    (tmp_path / "files").mkdir()
    (tmp_path / "empty/below").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(tmp_path / "files" / "train-0.parquet")
    Dataset.from_list(other).to_parquet(tmp_path / "files" / "test-0.parquet")
    for source, count in (
        ("./saved", 20), ("./saved:dev", 7), ("./one", 7), ("./files", 20), ("./files:test", 7),
        (str(tmp_path / "files:test"), 7),
    ):  # fmt: skip
        entry = listed(monkeypatch, tmp_path, sft=source)
        assert made(entry)["sources"]["sft"]["rows"] == count
    for source, message in (
        ("./saved:deb", "unknown split of .*'deb'; choose from: train, dev. Did you mean 'dev'"),
        ("./one:dev", "has no splits; leave ':dev' out"),
        ("./files:dev", 'cannot be read: Unknown split "dev"'),
        ("./none", "there is no such folder"),
        ("./empty", r"empty' has no data files \(.jsonl, .json, .parquet, .csv\), nor was it"),
        ("a--b/c", "'a--b/c' is no source; it must be a file"),
    ):
        with pytest.raises(UserError, match=message):
            made(listed(monkeypatch, tmp_path, sft=source))


def test_an_edited_file_is_read_again_and_force_reads_all(monkeypatch, tmp_path, said):
    entry = full(monkeypatch, tmp_path)
    first = made(entry)
    assert made(entry) == first
    assert [line.split(",")[0] for line in said] == [
        f"own: {kind} is here already" for kind in ("sft", "preference", "test")
    ]
    rows = [row | {"completion": "fins"} for row in FORMS["completion"][1]]
    lines(tmp_path / "s.jsonl", rows)
    assert made(entry)["pools"]["sft"]["sha256"] != first["pools"]["sft"]["sha256"]
    (folder_of("own") / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        made(entry)
    assert made(entry, force=True)["pools"]["test"] == first["pools"]["test"]


def run(method: str, size: int = 10, **values: Any):
    return preference_config(
        model="tiny", dataset="own", task="math", pft_method=method, train_size=size, values=values
    )


def unpaired(monkeypatch, root: Path) -> None:
    rows = [{"prompt": f"q {n // 4}", "completion": f"a {n}", "label": n % 2 == 0, "answer": n}
            for n in range(60)]  # fmt: skip
    made(listed(monkeypatch, root, preference=lines(root / "x.jsonl", rows)))


def test_unpaired_rows_are_for_kto_and_grpo_and_each_is_an_example(monkeypatch, tmp_path):
    unpaired(monkeypatch, tmp_path)
    config = run("kto", 50)
    assert config.steps(50) == 2 * 2
    assert run("grpo").run_name == "tiny_pt-own-10_grpo"
    with pytest.raises(UserError) as caught:
        run("dpo")
    assert str(caught.value) == (
        "the preference pool of 'own' is unpaired (prompt, completion, label), and dpo needs "
        "prompt, chosen, rejected; choose kto, or other data."
    )
    with pytest.raises(UserError, match="kl_batch_size is 64; it must be a divisor of the 32 rows"):
        run("kto", kl_batch_size=64)
    assert run("kto", effective_batch_size=16, kl_batch_size=16).training.kl_batch_size == 16


@pytest.mark.parametrize("label", ["yes", None, 0.5, [], {}, 2])
def test_a_label_is_true_or_false(monkeypatch, tmp_path, label):
    rows = [{"prompt": "p", "completion": "c", "label": label}]
    with pytest.raises(UserError, match=r"no row of 'x\.jsonl' can be used as preference data"):
        made(listed(monkeypatch, tmp_path, preference=lines(tmp_path / "x.jsonl", rows)))


def test_both_labels_must_be_there(monkeypatch, tmp_path):
    rows = [{"prompt": f"p {n}", "completion": "c", "label": True} for n in range(9)]
    with pytest.raises(UserError, match=r"'x\.jsonl' has rows of one label only"):
        made(listed(monkeypatch, tmp_path, preference=lines(tmp_path / "x.jsonl", rows)))
    lines(tmp_path / "pt.jsonl", [*rows, {"prompt": "p 0", "completion": "d", "label": 0}])
    entry = site.collections().dataset("mine")
    assert train_dataset.rows(entry, "preference")[-1]["label"] is False
    train_dataset.require_labels(entry, 10, "kto")
    with pytest.raises(UserError, match=r"the first 9 examples of the .* have the label true; kto"):
        train_dataset.require_labels(entry, 9, "kto")


def test_the_script_makes_a_dataset_by_its_name(monkeypatch, tmp_path):
    full(monkeypatch, tmp_path)
    script = CHECKOUT / "tuning/data/prepare.py"
    monkeypatch.setenv("TUNING_COLLECTIONS", str(tmp_path / "collections.yaml"))
    for name, message in (
        ("arith", "error: dataset 'arith' is of loader arith, not published."),
        ("gsm8k", "error: dataset 'gsm8k' is of loader gsm8k, not published; python tuning/data/"),
        ("onw", "error: unknown dataset of loader published: 'onw'; choose from: ."),
    ):
        refused = check(run_script(tmp_path / "home", script, name, cwd=tmp_path), 2)
        assert refused.stderr.splitlines()[-1].startswith(message)
    assert manifest_of("own") is None


def test_a_stage_needs_no_collections(monkeypatch, tmp_path):
    made(full(monkeypatch, tmp_path))
    config = sft_config(model="tiny", dataset="own", task="math", train_size=5)
    (tmp_path / "collections.yaml").unlink()
    assert len(config.dataset.rows("sft", 5)) == 5
