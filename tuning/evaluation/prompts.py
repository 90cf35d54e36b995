"""What must hold of a test pool before models are sampled on it."""

from __future__ import annotations

from functools import partial

from tuning.config import DatasetEntry
from tuning.data import train_dataset
from tuning.tasks.registry import task


def require_test_pool(dataset: DatasetEntry, task_name: str, prompts: int) -> None:
    """Raise UserError unless the first `prompts` rows of a test pool are there and can be graded;
    `task_name` is canonical.
    """
    grader = task(task_name)
    train_dataset.require(dataset, "test", prompts, "prompts")
    columns = ("prompt", *grader.columns)
    train_dataset.require_columns(dataset, "test", columns, f"task '{task_name}'")
    rows = train_dataset.rows(dataset, "test", prompts)
    grader.require_gradable(rows, partial(train_dataset.where, dataset, "test"))
