"""The dataset `arith`: pools that never meet, right answers, wrong rejections, fixed text."""

from __future__ import annotations

import hashlib
import itertools
import json
import re

import pytest

from tuning.data import arith
from tuning.data.generated import SIZES

pytestmark = pytest.mark.unit

STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def pools() -> dict[str, list[dict]]:
    return arith.pools(0)


def final(text: str) -> str:
    return re.fullmatch(r"#### (\d+)", text.splitlines()[-1])[1]


def question(row: dict) -> str:
    return row["prompt"][0]["content"]


def test_sizes_and_order(pools):
    assert {name: len(rows) for name, rows in pools.items()} == {
        "sft": SIZES["sft"],
        "preference": SIZES["preference"],
        "validation": SIZES["validation"],
        "test": SIZES["test"],
    }
    arith.pools.cache_clear()
    assert pools == arith.pools(0)
    assert question(arith.pools(1)["sft"][0]) != question(pools["sft"][0])


def test_no_question_occurs_twice_nor_its_numbers_in_pretraining(pools):
    questions = [question(row) for rows in pools.values() for row in rows]
    assert len(set(questions)) == len(questions)
    known = {tuple(re.findall(r"\d+", text)) for text in questions}
    pattern = re.compile(r"(?:Question|Q|Problem): (.*)")
    seen = 0
    for document in itertools.islice(arith.pretraining_documents(0), 20_000):
        if match := pattern.match(document):
            seen += 1
            assert tuple(re.findall(r"\d+", match[1])) not in known
    assert seen > 5_000


def test_worked_answers_are_right(pools):
    for row in pools["sft"] + pools["validation"]:
        text = row["completion"][0]["content"]
        steps = STEP.findall(text)
        assert len(steps) == 2
        for left, op, right, result in steps:
            assert int(left) + int(op + right) == int(result)
            assert int(right) <= arith.MAX_NUMBER
            assert 0 <= int(result) <= arith.MAX_RESULT
        assert final(text) == row["answer"] == steps[-1][-1]
        assert [steps[0][0], steps[0][2], steps[1][2]] == re.findall(r"\d+", question(row))


def test_rejected_has_the_format_and_a_wrong_answer(pools):
    for row in pools["preference"]:
        assert final(row["chosen"][0]["content"]) == row["answer"]
        rejected = row["rejected"][0]["content"]
        assert final(rejected) != row["answer"]
        assert STEP.findall(rejected)[-1][-1] == final(rejected)


def test_the_text_is_that_of_the_version(pools):
    """Where this fails on purpose, raise `arith.VERSION` and take over the new digest."""
    documents = list(itertools.islice(arith.pretraining_documents(0), 1_000))
    digest = hashlib.sha256(json.dumps([pools, documents]).encode()).hexdigest()
    assert (arith.VERSION, digest[:16]) == ("1", "fe80d79df7ba0f72")
