"""What a task is: which columns of a row it grades by, and how it grades a response.

To add one, write it in a module of this package and name it in TASKS (tuning/tasks/registry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuning.runs.errors import UserError

BEYOND = "beyond_context"
"""Marks a prompt that is longer than the context of the model."""
RESERVED = ("index", "prompt", "responses", BEYOND)
"""What a line of responses.jsonl has of its own."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What a response is worth."""

    right: bool
    """What pass@k counts."""
    reward: float
    """For reinforcement learning."""
    parts: dict[str, float | bool | Sequence[bool]] = field(default_factory=dict)
    """Further measures by name, a value or several; scores.json has the mean of each."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of problem whose responses can be graded without a judge.

    A row is a row of a pool, or a line of responses.jsonl: what both have are `columns`.
    """

    name: str
    columns: tuple[str, ...]
    """The columns of a row, beside its prompt, that it grades by: any JSON values."""
    accepts: Callable[[Mapping[str, Any]], str | None]
    """Why responses to a row cannot be graded; None where they can."""
    grade: Callable[[str, Mapping[str, Any]], Grade]
    """(response, row) -> Grade."""

    is_ready: Callable[[], bool] = lambda: True
    """Whether all that grading needs beyond the code is here."""
    fetch: Callable[[], None] = lambda: None
    """Gets it where it is not; UserError without a network."""

    def __post_init__(self) -> None:
        if taken := set(self.columns) & set(RESERVED):
            raise ValueError(f"task '{self.name}' cannot grade by {', '.join(sorted(taken))}")

    def require_gradable(
        self, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]
    ) -> None:
        """Raise UserError for a row that cannot be graded; `where` names a row by its number."""
        for number, row in enumerate(rows):
            if why := self.accepts(row):
                raise UserError(f"{where(number)}: task '{self.name}' cannot grade it: {why}.")
