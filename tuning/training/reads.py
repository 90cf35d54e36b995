"""What a preference method needs of the rows that it is trained on: pairs, unpaired rows with
labels, or prompts that the task can grade answers to.
"""

from __future__ import annotations

from tuning import methods
from tuning.data import train_dataset
from tuning.data.config import DatasetConfig
from tuning.runs.errors import UserError
from tuning.settings import require
from tuning.tasks import registry as tasks
from tuning.training.config import DPOTrainingConfig


def require_rows(data: DatasetConfig, method: str, task: str, training: DPOTrainingConfig) -> None:
    """Raise UserError unless the preference pool has what a method reads."""
    able, unpaired = methods.method(method), train_dataset.is_unpaired(data.entry)
    if able.unpaired and unpaired:
        train_dataset.require_labels(data.entry, data.train_size, method)
        batch, kl = training.effective_batch_size, training.kl_batch_size
        fits = f"a divisor of the {batch} rows of a step, as the preference pool is unpaired"
        require(training, "kl_batch_size", batch % kl == 0, fits)
        return
    if unpaired and not able.rewarded:
        raise UserError(
            f"the preference pool of '{data.dataset}' is unpaired ({', '.join(methods.UNPAIRED)}), "
            f"and {method} needs {', '.join(able.columns)}; choose "
            f"{' or '.join(m.name for m in methods.METHODS.values() if m.unpaired)}, or other data."
        )
    train_dataset.require_columns(data.entry, "preference", columns_of(method, task), method)


def columns_of(pft_method: str, task: str) -> tuple[str, ...]:
    """The columns of the preference pool that a method reads."""
    method = methods.method(pft_method)
    return method.reads(tasks.task(task).columns if method.rewarded else ())
