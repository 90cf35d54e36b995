"""Loaders by name, and the columns that whoever reads a pool needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.small_site import COLLECTIONS, use
from tuning import config as site
from tuning.config import DatasetEntry
from tuning.data import train_dataset
from tuning.data.loaders import LOADERS, loader
from tuning.data.prepared import NotPrepared
from tuning.evaluation.prompts import require_test_pool
from tuning.runs.errors import UserError
from tuning.training.config_training import preference_config, sft_config

pytestmark = pytest.mark.unit

ARITH = DatasetEntry(name="arith", loader="arith")
SFT: list[dict[str, Any]] = [{"prompt": f"s{n}", "completion": "c"} for n in range(4)]
GOOD: dict[str, list[dict[str, Any]]] = {
    "sft": SFT,
    "va": [{"prompt": "v", "completion": "c"}],
    "pt": [{"prompt": f"p{n}", "chosen": "a", "rejected": "b", "answer": n} for n in range(4)],
    "te": [{"prompt": f"t{n}", "answer": n} for n in range(4)],
}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def mine(root: Path, **pools: list[dict[str, Any]]) -> DatasetEntry:
    """The dataset `mine` of the small site, with some pools of its own."""
    for name, rows in (GOOD | pools).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(text)
    return site.collections().dataset("mine")


def run(method: str | None = None, size: int = 2):
    wanted: Any = {"model": "tiny", "dataset": "mine", "task": "math", "train_size": size}
    if method is None:
        return sft_config(**wanted)
    return preference_config(pft_method=method, **wanted)


class Numbers:
    """A loader that counts: as small as one can be."""

    def __init__(self, entry: DatasetEntry) -> None:
        self.name = entry.name

    def version(self, pools):
        return "1"

    def pool(self, name):
        prompts = [[{"role": "user", "content": f"{name} {n}"}] for n in range(self.size(name))]
        return [{"prompt": prompt, "answer": n} for n, prompt in enumerate(prompts)]

    def size(self, name):
        return 60

    def columns(self, name):
        return frozenset(("prompt", "answer"))

    def where(self, name, number):
        return f"number {number} of {name}"


def test_an_added_loader_is_used_by_its_name(monkeypatch, tmp_path):
    """What a stranger adds: a class, its name in LOADERS, and a dataset in collections.yaml."""
    monkeypatch.setitem(LOADERS, "numbers", Numbers)
    use(monkeypatch, tmp_path, COLLECTIONS.replace("later: {loader: tuluif}",
                                                   "later: {loader: numbers}"))  # fmt: skip
    entry = site.collections().dataset("later")
    assert train_dataset.pool_size(entry, "test") == 60
    assert train_dataset.rows(entry, "test", 2)[1]["answer"] == 1
    require_test_pool(entry, "math", 50)
    with pytest.raises(UserError, match="number 0 of preference lacks chosen, rejected; dpo needs"):
        train_dataset.require_columns(entry, "preference", ("prompt", "chosen", "rejected"), "dpo")


@pytest.mark.parametrize("name", ["gsm8k", "tuluif"])
def test_a_published_dataset_that_is_not_here_says_how_to_make_it(monkeypatch, tmp_path, name):
    use(monkeypatch, tmp_path)
    with pytest.raises(NotPrepared, match=f"'x' is not here yet.*tuning/data/{name}_sft.py and"):
        loader(DatasetEntry(name="x", loader=name)).size("sft")


def test_an_unknown_loader_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown loader of dataset 'x': 'jsnl'.*'jsonl'"):
        loader(DatasetEntry(name="x", loader="jsnl"))


@pytest.mark.parametrize("pool", ["sft", "preference", "validation", "test"])
def test_what_arith_says_of_its_pools_is_so(pool):
    rows = train_dataset.rows(ARITH, pool)
    assert len(rows) == train_dataset.pool_size(ARITH, pool)
    assert all(row.keys() == loader(ARITH).columns(pool) for row in rows)
    assert train_dataset.where(ARITH, pool, 4) == f"{pool} row 5 of 'arith'"


@pytest.mark.parametrize("pool", ["sft", "va"])
def test_sft_needs_prompts_and_completions(tmp_path, pool):
    mine(tmp_path, **{pool: [GOOD[pool][0], {"prompt": "x"}, {"prompt": "y"}]})
    whole = {"sft": "sft", "va": "validation"}[pool]
    with pytest.raises(UserError) as caught:
        run()
    assert str(caught.value) == (
        f"{pool}.jsonl:2 lacks completion; SFT needs prompt, completion in every row of the "
        f"{whole} pool of 'mine'."
    )
    assert run("dpo").pft_method == "dpo"


def test_a_dataset_for_grpo_has_prompts_and_answers_only(tmp_path):
    mine(tmp_path, pt=[{"prompt": f"p{n}", "answer": n} for n in range(3)])
    assert run("grpo").run_name == "tiny_pt-mine-2_grpo"
    for method in ("dpo", "kto"):
        with pytest.raises(UserError, match=rf"pt\.jsonl:1 lacks chosen, rejected; {method} needs"):
            run(method)


def test_a_dataset_for_dpo_needs_no_answers(tmp_path):
    pairs = [{k: v for k, v in row.items() if k != "answer"} for row in GOOD["pt"]]
    mine(tmp_path, pt=[*GOOD["pt"][:2], pairs[2]])
    assert [run(method).pft_method for method in ("dpo", "kto")] == ["dpo", "kto"]
    with pytest.raises(UserError, match=r"pt\.jsonl:3 lacks answer; grpo needs prompt, answer in"):
        run("grpo")


def test_a_test_row_needs_what_the_task_grades_by(tmp_path):
    entry = mine(
        tmp_path, te=[{"prompt": "t", "answer": 1, "level": {"hard": True}}, {"prompt": "u"}]
    )
    assert train_dataset.rows(entry, "test")[0]["level"] == {"hard": True}
    require_test_pool(ARITH, "math", 50)
    with pytest.raises(UserError) as caught:
        require_test_pool(entry, "math", 1)
    assert str(caught.value) == (
        "te.jsonl:2 lacks answer; task 'math' needs prompt, answer in every row of the test pool "
        "of 'mine'."
    )


@pytest.mark.parametrize("answer", ["five", True, None, {"value": 5}], ids=repr)
def test_an_answer_may_be_anything_that_the_task_accepts(tmp_path, answer):
    entry = mine(tmp_path, te=[{"prompt": "t", "answer": 5.0}, {"prompt": "u", "answer": answer}])
    require_test_pool(entry, "math", 1)
    with pytest.raises(UserError, match=r"te\.jsonl:2: task 'math' cannot grade it: its answer is"):
        require_test_pool(entry, "math", 2)
