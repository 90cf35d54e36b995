"""What must hold of a pool before a task grades answers to its prompts: those of an evaluation,
those of which pass@k is measured during SFT, or those that a preference method is rewarded for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tuning.config import DatasetEntry
from tuning.data import train_dataset
from tuning.methods import method
from tuning.tasks.registry import task


def require_test_pool(dataset: DatasetEntry, task_name: str, prompts: int) -> None:
    """Raise UserError unless the first `prompts` rows of a test pool are there and can be graded;
    `task_name` is canonical.
    """
    train_dataset.require(dataset, "test", prompts, "prompts")
    _require_gradable(dataset, "test", task_name, prompts, f"task '{task_name}'")


def require_problems(dataset: DatasetEntry, task_name: str, prompts: int) -> None:
    """Raise UserError unless answers to the first `prompts` rows of the validation pool, or to all
    of a smaller one, can be graded.
    """
    size = min(prompts, train_dataset.pool_size(dataset, "validation"))
    train_dataset.require(dataset, "validation", size, "the validation pool")
    _require_gradable(dataset, "validation", task_name, size, "pass@k during SFT")


def require_rewards(
    dataset: DatasetEntry, task_name: str, methods: Iterable[str], size: int
) -> None:
    """Raise UserError unless answers to the first `size` rows of the preference pool can be graded,
    where any of the methods is rewarded by the task.
    """
    if rewarded := [name for name in methods if method(name).rewarded]:
        _require_gradable(dataset, "preference", task_name, size, rewarded[0])


def _require_gradable(
    dataset: DatasetEntry, pool: str, task_name: str, size: int, who: str
) -> None:
    """Raise UserError, with the row, unless answers to the first `size` rows can be graded, which
    `who` asks for.
    """
    grader = task(task_name)
    train_dataset.require_columns(dataset, pool, ("prompt", *grader.columns), who)
    rows = train_dataset.rows(dataset, pool, size)
    grader.require_gradable(rows, partial(train_dataset.where, dataset, pool))
