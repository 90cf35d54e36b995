"""The tasks of this version, and what a task brings."""

from __future__ import annotations

import pytest

from tuning.runs.errors import UserError
from tuning.tasks.base import RESERVED, Grade, Task
from tuning.tasks.registry import TASKS, task

pytestmark = pytest.mark.unit


def words(row) -> str | None:
    return None if row["words"] else "it asks for no words"


def has_words(response: str, row) -> Grade:
    parts = {word: word in response for word in row["words"]}
    return Grade(right=all(parts.values()), reward=sum(parts.values()) / len(parts), parts=parts)


WORDS = Task(name="words", columns=("words",), accepts=words, grade=has_words)
"""A task without an answer: its rows say what a response must have."""


def test_the_task_by_its_name():
    found = task("math")
    row = {"answer": "5"}
    assert found.grade("#### 5", row).right
    rewards = [found.grade(response, row).reward for response in ("#### 5", "#### 6", "5")]
    assert rewards == [1.0, 0.1, 0.0]
    with pytest.raises(UserError, match="'logic' cannot be evaluated in this version; these can"):
        task("logic")
    assert all(name == entry.name for name, entry in TASKS.items())


def test_a_task_may_grade_by_any_columns():
    row = {"words": ["red", "blue"]}
    assert WORDS.accepts(row) is None
    half = Grade(right=False, reward=0.5, parts={"red": True, "blue": False})
    assert WORDS.grade("a red one", row) == half


def test_the_first_row_that_cannot_be_graded_is_named():
    rows = [{"words": ["a"]}, {"words": []}, {"words": []}]
    WORDS.require_gradable(rows[:1], "row {}".format)
    with pytest.raises(UserError) as caught:
        WORDS.require_gradable(rows, "row {}".format)
    assert str(caught.value) == "row 1: task 'words' cannot grade it: it asks for no words."


@pytest.mark.parametrize("column", RESERVED)
def test_what_a_line_of_responses_has_of_its_own_is_no_column(column):
    with pytest.raises(ValueError, match=column):
        Task(name="x", columns=(column,), accepts=words, grade=has_words)
