"""The one door to data: pools, prefixes, sizes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.config import DatasetEntry, collections
from tuning.data import train_dataset
from tuning.data.generated import SIZES
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

POOLS = {
    "sft": SIZES["sft"],
    "preference": SIZES["preference"],
    "validation": SIZES["validation"],
    "test": SIZES["test"],
}


@pytest.fixture(autouse=True, scope="module")
def site(tmp_path_factory) -> Iterator[Path]:
    """One for all tests, so that the data is made once."""
    root = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, root)
        yield root


def entry(name: str) -> DatasetEntry:
    return collections().dataset(name)


@pytest.mark.parametrize(("pool", "size"), POOLS.items())
def test_a_subset_is_a_prefix(pool, size):
    whole = train_dataset.rows(entry("arith"), pool)
    assert len(whole) == size == train_dataset.pool_size(entry("arith"), pool)
    for count in (1, 100, size):
        assert train_dataset.rows(entry("arith"), pool, count) == whole[:count]


def test_rows_have_the_columns_of_their_pool():
    keys = {pool: set(train_dataset.rows(entry("arith"), pool, 1)[0]) for pool in POOLS}
    assert keys["sft"] >= {"prompt", "completion"} <= keys["validation"]
    assert keys["preference"] >= {"prompt", "chosen", "rejected"}
    assert keys["test"] >= {"prompt", "answer"}


def test_no_prompt_stands_in_two_pools():
    prompts = [
        {train_dataset.prompt_text(row) for row in train_dataset.rows(entry("arith"), pool)}
        for pool in POOLS
    ]
    assert len(set.union(*prompts)) == sum(POOLS.values())


@pytest.mark.parametrize("size", [1, SIZES["sft"]])
def test_what_the_pool_holds_may_be_asked_for(size):
    train_dataset.require(entry("arith"), "sft", size, "train_size")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "train_size is 0; it must be at least 1."),
        (-3, "train_size is -3; it must be at least 1."),
        (10_001, "train_size is 10001, but the sft pool of 'arith' has only 10000 examples."),
    ],
)
def test_other_sizes_are_refused(size, message):
    with pytest.raises(UserError) as caught:
        train_dataset.require(entry("arith"), "sft", size, "train_size")
    assert str(caught.value) == message
    with pytest.raises(UserError):
        train_dataset.rows(entry("arith"), "sft", size)


def test_a_dataset_that_is_not_here_says_how_to_make_it():
    with pytest.raises(UserError, match="dataset 'later' is not here yet; make it with `tuning pr"):
        train_dataset.version(entry("later"), "sft")


def test_an_unknown_dataset_or_loader_names_the_nearest(monkeypatch, site, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'arith'"):
        train_dataset.rows(entry("arit"), "sft")
    text = (site / "collections.yaml").read_text().replace("loader: tuluif", "loader: jsnl")
    use(monkeypatch, tmp_path, text)
    with pytest.raises(UserError, match=r"unknown loader of dataset 'later': 'jsnl'.*'jsonl'"):
        train_dataset.version(entry("later"), "sft")


def test_ones_own_files_stand_beside_collections_yaml(site):
    rows = [{"prompt": f"{n}?", "completion": str(n)} for n in range(5)]
    (site / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("pt", "va", "te"):
        (site / f"{name}.jsonl").write_text("")
    assert train_dataset.pool_size(entry("mine"), "sft") == 5
    assert [train_dataset.prompt_text(r) for r in train_dataset.rows(entry("mine"), "sft", 2)] == [
        "0?",
        "1?",
    ]
    with pytest.raises(UserError, match="size is 6, but the sft pool of 'mine' has only 5"):
        train_dataset.require(entry("mine"), "sft", 6, "size")
