"""The embedded instructions: answers that follow them by IFEval's checkers, and others."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from tests.small_site import use
from tuning.config import DatasetEntry
from tuning.data import ifsynth
from tuning.data.generated import SIZES
from tuning.data.loaders import loader
from tuning.data.rows import checked_row, prompt_key
from tuning.tasks import instruction

pytestmark = pytest.mark.unit

ENTRY = DatasetEntry(name="ifsynth", loader="ifsynth")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield use(monkeypatch, tmp_path_factory.mktemp("site"))


def test_pools_are_what_the_loader_says_and_share_no_prompt():
    opened = loader(ENTRY)
    prompts = {}
    for pool, size in SIZES.items():
        rows = opened.pool(pool)
        assert (len(rows), opened.size(pool)) == (size, size)
        assert {frozenset(row) for row in rows} == {opened.columns(pool)}
        assert all(instruction.accepts(row) is None for row in rows)
        assert checked_row(pool, rows[0], "x") == rows[0]
        prompts[pool] = {prompt_key(row["prompt"]) for row in rows}
        assert len(prompts[pool]) == size
    for one, other in combinations(prompts.values(), 2):
        assert not one & other


def test_answers_follow_all_instructions_and_rejected_ones_all_but_one():
    opened = loader(ENTRY)
    kinds = set()
    for row in opened.pool("sft")[:300]:
        grade = instruction.grade(row["completion"][0]["content"], row)
        assert grade.right, (row["prompt"], row["completion"])
        kinds |= set(row["instruction_id_list"])
    assert len(kinds) == 9
    for row in opened.pool("preference")[:300]:
        assert instruction.grade(row["chosen"][0]["content"], row).right
        followed, _ = instruction.followed(row["rejected"][0]["content"], row)
        assert followed.count(False) == 1, (row["prompt"], row["rejected"])


def test_the_same_seed_gives_the_same_pools():
    made = ifsynth.pools()
    ifsynth.pools.cache_clear()
    assert json.dumps(made) == json.dumps(ifsynth.pools())
    assert ifsynth.pools(1)["sft"][0] != made["sft"][0]
