"""Instructions that a program checks: verdicts as the official program gives them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tuning.runs.errors import UserError
from tuning.tasks import instruction, sentences

pytestmark = pytest.mark.unit

PUBLISHED = Path(__file__).parent / "ifeval_verdicts.jsonl"
"""Prompts of IFEval and published responses of GPT-4, with the verdicts of the official program:
google-research, instruction_following_eval, Apache-2.0. Every instruction is there.
"""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    """A TUNING_HOME into which the data for splitting sentences come once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TUNING_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def row(*names: str, **kwargs) -> dict:
    return {"prompt": "?", "instruction_id_list": list(names), "kwargs": [kwargs for _ in names]}


def test_verdicts_are_those_of_the_official_program():
    lines = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    assert {n for line in lines for n in line["instruction_id_list"]} == {*instruction.ARGUMENTS}
    for line in lines:
        assert instruction.accepts(line) is None
        strict, loose = instruction.followed(line["response"], line)
        assert (strict, loose) == (line["strict"], line["loose"]), line["prompt"]


def test_the_instructions_and_their_arguments_are_those_of_the_checkers():
    from inspect import signature

    sentences.require()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert INSTRUCTION_DICT.keys() == instruction.ARGUMENTS.keys()
    for name, checker in INSTRUCTION_DICT.items():
        takes = [p for p in signature(checker.build_description).parameters if p != "self"]
        assert set(takes) == set(instruction.ARGUMENTS[name]), name
    from lm_eval.tasks.ifeval.instructions_util import LANGUAGE_CODES

    assert set(LANGUAGE_CODES) == set(instruction.LANGUAGES.split())


def test_a_response_is_graded_by_all_of_its_instructions():
    asked = row("punctuation:no_comma", "change_case:english_lowercase")
    both = instruction.grade("all fine here", asked)
    assert (both.right, both.reward) == (True, 1.0)
    half = instruction.grade("All fine here", asked)
    assert (half.right, half.reward) == (False, 0.5)
    assert half.parts == {
        "prompt_loose": False,
        "instruction_strict": [True, False],
        "instruction_loose": [True, False],
    }
    loosely = instruction.grade("Sure, here it is:\nall fine here", asked)
    assert (loosely.right, loosely.parts["prompt_loose"]) == (False, True)
    assert instruction.grade("", asked).reward == 0.0


def test_sentences_are_split_by_trained_data():
    """Abbreviations end no sentence."""
    asked = row("length_constraints:number_sentences", num_sentences=3, relation="less than")
    text = "Dr. Smith met Mr. Jones of Acme Inc. on Monday. They talked about Mrs. Brown."
    assert instruction.grade(text, asked).right


def test_what_is_drawn_at_random_is_the_same_each_time_and_disturbs_nobody():
    asked = row("keywords:letter_frequency", letter="#", let_frequency=3, let_relation="at least")
    texts = [letter * 3 for letter in "abcdefghijklmnopqrstuvwxyz"]
    random.seed(5)
    expected = random.Random(5).random()
    first = [instruction.grade(text, asked).right for text in texts]
    assert random.random() == expected
    assert first == [instruction.grade(text, asked).right for text in texts]
    asked = row("language:response_language", language="de")
    found = {instruction.grade("Das ist ein Haus und ein Baum.", asked).right for _ in range(5)}
    assert found == {True}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"instruction_id_list": []}, "must be a list of instructions"),
        ({"instruction_id_list": "punctuation:no_comma"}, "must be a list of instructions"),
        ({"instruction_id_list": ["punctuation:no_dots"]}, "is none of IFEval's 25"),
        ({"kwargs": []}, "must have an object for each instruction"),
        ({"kwargs": [3]}, "kwargs of punctuation:no_comma is 3; it must be an object"),
        ({"kwargs": [{"commas": 3}]}, "has no argument 'commas'"),
    ],
)
def test_rows_that_cannot_be_checked_are_refused(changes, why):
    assert why in (instruction.accepts(row("punctuation:no_comma") | changes) or "")


def test_arguments_of_other_instructions_may_be_there_as_null():
    """The dataset of the hub has all keys in every row."""
    empty = dict.fromkeys(name for checks in instruction.ARGUMENTS.values() for name in checks)
    assert {"nth_paragraph", "num_paragraphs"} <= set(empty)
    for name, given in (
        ("punctuation:no_comma", {}),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 1}),
    ):
        assert instruction.accepts(row(name, **empty | given)) is None
        assert instruction.grade("fine", row(name, **empty | given)).right


@pytest.mark.parametrize(
    ("name", "kwargs", "why"),
    [
        ("keywords:existence", {}, "keywords of keywords:existence is None; it must be a list"),
        ("keywords:existence", {"keywords": "abc"}, "is 'abc'; it must be a list of texts"),
        ("keywords:existence", {"keywords": [":)"]}, "cannot be searched for as a regular expr"),
        ("length_constraints:number_words", {"relation": "at least"}, "num_words of"),
        (
            "length_constraints:number_words",
            {"num_words": "3", "relation": "at least"},
            "whole num",
        ),
        ("length_constraints:number_words", {"num_words": 3, "relation": "x"}, "'less than'"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 0}, "above zero"),
        ("language:response_language", {"language": "zh"}, "must be one of ar bg"),
        ("combination:repeat_prompt", {}, "prompt_to_repeat of"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph above num_paragraphs",
        ),
    ],
)
def test_an_instruction_needs_all_of_its_arguments(name, kwargs, why):
    assert why in (instruction.accepts(row(name, **kwargs)) or "")


@pytest.mark.parametrize("response", ["[" * 1500, '{"a":' * 1500, "x" * 100_000, "\x00", "*" * 999])
def test_any_response_is_graded(response):
    for name, kwargs in (
        ("detectable_format:json_format", {}),
        ("language:response_language", {"language": "de"}),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 3.0}),
    ):
        assert set(instruction.grade(response, row(name, **kwargs)).parts) > {"prompt_loose"}


def test_without_the_package_index_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNING_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match=r"cannot be fetched .*run `tuning prefetch` where"):
        sentences.fetch()
    assert not sentences.folder().exists()
