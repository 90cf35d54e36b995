"""What a row says: prompts that a user asks, answers of the assistant, pairs that differ."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.test_jsonl import assistant, loader, user
from tuning.data.rows import checked_row, opening_key, prompt_key, question_key
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit


def row(pool: str, **columns: Any) -> dict[str, Any]:
    return checked_row(pool, columns, "f:1")


def said(pool: str, **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        row(pool, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TALK = [*user("2+3?"), *assistant("5"), *user("and 4?")]


@pytest.mark.parametrize("prompt", ["2+3?", user("2+3?"), user(" 2+3?\n")], ids=repr)
def test_whole_conversations_are_answers_to_what_they_share(prompt):
    asked = user("2+3?")
    found = row("preference", prompt=prompt, chosen=asked + assistant("5"), rejected=assistant("6"))
    assert (found["chosen"], found["rejected"]) == (assistant("5"), assistant("6"))


def test_whole_conversations_need_no_prompt():
    found = row("preference", chosen=TALK + assistant("9"), rejected=TALK + assistant("8"), id=3)
    assert found == {
        "prompt": TALK,
        "chosen": assistant("9"),
        "rejected": assistant("8"),
        "id": 3,
    }


def test_answers_that_differ_in_blanks_within_are_two():
    """Indentation is code."""
    row("preference", prompt="p", chosen="if x:\n    y\n    z", rejected="if x:\n    y\nz")


@pytest.mark.parametrize("prompt", ["2+3?", "and 4?"])
def test_whole_conversations_of_several_turns_bring_their_prompt(prompt):
    system = [{"role": "system", "content": "brief"}]
    chosen, rejected = (system + TALK + assistant(text) for text in ("9", "8"))
    found = row("preference", prompt=prompt, chosen=chosen, rejected=rejected)
    assert found["prompt"] == system + TALK
    assert (found["chosen"], found["rejected"]) == (assistant("9"), assistant("8"))


def test_a_prompt_keeps_its_system_message_where_the_conversations_have_none():
    system = [{"role": "system", "content": "brief"}]
    for asked in (system + user("and 4?"), system + TALK):
        found = row("preference", prompt=asked, chosen=TALK + assistant("9"),
                    rejected=TALK + assistant("8"))  # fmt: skip
        assert found["prompt"] == system + TALK
        assert (found["chosen"], found["rejected"]) == (assistant("9"), assistant("8"))
    own = row("sft", prompt=system + TALK, completion=TALK + assistant("9"))
    assert (own["prompt"], own["completion"]) == (system + TALK, assistant("9"))


def test_the_same_question_under_another_system_message_is_in_one_pool_only(tmp_path):
    other = [{"role": "system", "content": "brief"}, *user("s0")]
    made = loader(tmp_path, test=[{"prompt": other, "answer": 2}])
    with pytest.raises(UserError, match=r"in sft and test, sft\.jsonl:1 and test\.jsonl:1"):
        made.pool("sft")
    both = [{"prompt": prompt, "answer": 2} for prompt in ("q", [other[0], *user("q")])]
    assert len(loader(tmp_path, test=both).pool("test")) == 2


def test_a_completion_may_repeat_the_prompt():
    found = row("sft", prompt=TALK, completion=TALK + assistant("9"))
    assert found["completion"] == assistant("9")


@pytest.mark.parametrize(
    ("pool", "columns", "message"),
    [
        ("sft", {"prompt": assistant("hi"), "completion": "c"}, "prompt ends with a turn of the a"),
        ("test", {"prompt": [{"role": "system", "content": "s"}]}, "prompt ends with a turn of t"),
        ("sft", {"prompt": "p", "completion": user("c")}, "completion has a turn of the user"),
        (
            "sft",
            {"prompt": "p", "completion": assistant("c") + user("d")},
            "has a turn of the user",
        ),
        ("sft", {"prompt": "p", "completion": assistant(" ")}, "has an empty assistant message"),
        ("sft", {"prompt": user("p") + user(""), "completion": "c"}, "has an empty user message"),
        ("sft", {"prompt": "p", "completion": user("p")}, "repeats the prompt and does not answer"),
        ("sft", {"prompt": "p", "completion": " "}, 'completion is " "; it must be text or a list'),
        ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same answer"),
        (
            "preference",
            {"prompt": "p", "chosen": "a b", "rejected": assistant(" a b\n")},
            "the same",
        ),
        (
            "preference",
            {"chosen": user("a") + assistant("b")},
            "f:1 lacks prompt; every row has on",
        ),
        (
            "preference",
            {"chosen": assistant("b"), "rejected": assistant("c")},
            "f:1 lacks prompt, ",
        ),
        ("preference", {"chosen": "b", "rejected": "c"}, "do not begin with the same turns"),
    ],
)
def test_what_no_trainer_could_read_is_refused(pool, columns, message):
    assert message in said(pool, **columns)


@pytest.mark.parametrize(
    "other",
    [
        " s0",
        "s0\n",
        [{"content": "s0", "role": "user"}],
        [{"role": "user", "content": "s0 ", "x": 1}],
    ],
    ids=repr,
)
def test_a_prompt_that_differs_in_blanks_or_keys_is_the_same(tmp_path, other):
    made = loader(tmp_path, test=[{"prompt": "t", "answer": 1}, {"prompt": other, "answer": 2}])
    with pytest.raises(UserError, match=r"in sft and test, sft\.jsonl:1 and test\.jsonl:2; the po"):
        made.pool("sft")


def test_prompts_that_differ_in_a_word_a_role_or_an_accent_are_two():
    assert prompt_key(user("Café  au\nlait")) == prompt_key(user("Cafe\u0301 au lait"))
    assert prompt_key(user("cafe")) != prompt_key(user("café"))
    assert prompt_key(user("a")) != prompt_key(assistant("a"))
    assert prompt_key(user("a b")) != prompt_key(user("ab"))


@pytest.mark.parametrize(
    "other", ["what IS  it?", "What is\u200b it?", "\uff37hat is it?", "What is\u00a0it?\n"]
)
def test_what_is_asked_is_the_same_however_it_is_spelled(other):
    assert question_key(user("What is it?")) == question_key(user(other))
    system = [{"role": "system", "content": "x"}]
    assert question_key([*system, *user(other)]) == question_key(user("What is it?"))
    assert question_key(user("Whatisit?")) != question_key(user("What is it?"))


def test_a_conversation_opens_with_its_first_question():
    turns = [*user("A?"), *assistant("b"), *user("c")]
    assert opening_key(turns) == question_key(user("a?"))
    assert opening_key(user("a?")) is None
