"""The tasks of this version by their canonical names. Their modules import heavy libraries only
when a response is graded.
"""

from __future__ import annotations

from tuning.runs.errors import UserError
from tuning.tasks.base import Task
from tuning.tasks.instruction import INSTRUCTION
from tuning.tasks.math import MATH

TASKS: dict[str, Task] = {entry.name: entry for entry in (MATH, INSTRUCTION)}


def task(name: str) -> Task:
    """A task by its canonical name; UserError for one that cannot be graded yet."""
    if name not in TASKS:
        raise UserError(
            f"task '{name}' cannot be evaluated in this version; these can: {', '.join(TASKS)}."
        )
    return TASKS[name]
