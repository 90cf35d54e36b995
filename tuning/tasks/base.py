"""What a task is: how an answer is checked and rewarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tuning.runs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of problem whose answers can be checked without a judge."""

    name: str
    check: Callable[[str, str], bool]
    """(response, reference answer) -> whether it is right."""
    accepts: Callable[[str], bool]
    """Whether a reference answer is one that a response can be compared with."""
    reward: Callable[[str, str], float]
    """(response, reference answer) -> reward for reinforcement learning."""


def task(name: str) -> Task:
    """A task by its canonical name."""
    from tuning.tasks import math

    if name == "math":
        return Task(name="math", check=math.is_right, accepts=math.is_reference, reward=math.reward)
    raise UserError(f"task '{name}' cannot be evaluated in this version; 'math' can.")
