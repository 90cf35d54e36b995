"""The one door to data: a pool of a dataset by name, as plain rows in one seeded order.

    sft, validation   {"prompt": [messages], "completion": [messages]}
    preference        {"prompt": [messages], ...} and what the method reads: "chosen", "rejected";
                      or "completion", "label"
    test              {"prompt": [messages], ...} and what the task grades by: "answer"

Rows keep whatever else their dataset has. A subset is a prefix of its pool, so that subsets are
nested. No pool shares a prompt with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuning.config import DatasetEntry
from tuning.data.loaders import Row, loader
from tuning.methods import PAIRS, UNPAIRED
from tuning.runs.errors import UserError

POOL_OF_TYPE = {"sft": "sft", "pt": "preference"}
READ_BY_TYPE = {
    "sft": ("sft", "validation"),
    "pt": ("preference",),
    "test": ("test",),
    "validation": ("validation",),
}
"""The pools that SFT, preference tuning, evaluation and a perplexity by itself read."""
SFT_COLUMNS = ("prompt", "completion")
"""What SFT reads of a training row, and the perplexity of a validation row."""


def version(dataset: DatasetEntry, kind: str) -> str:
    """Changes when the content of any pool does that a run of a kind reads; part of its hash."""
    return loader(dataset).version(READ_BY_TYPE[kind])


def require_version(dataset: DatasetEntry, kind: str, wanted: str) -> None:
    """Raise UserError where a dataset is no longer what a run was configured with."""
    if version(dataset, kind) != wanted:
        raise UserError(
            f"the files of dataset '{dataset.name}' were changed since this run was configured; "
            "restore them, or submit the experiment again: changed data make other runs."
        )


def has_pool(dataset: DatasetEntry, pool: str) -> bool:
    """Whether a dataset has a pool: one of files has those that are there, one of sources those
    that it names, and holds validation out of SFT data.
    """
    if pool in dataset.files:
        return Path(dataset.files[pool]).exists()
    named = dataset.files or dataset.sources
    held_out = pool == "validation" and "sft" in dataset.sources
    return not named or pool in named or held_out


def pool_size(dataset: DatasetEntry, pool: str) -> int:
    """How many rows a pool has."""
    return loader(dataset).size(pool)


def require(dataset: DatasetEntry, pool: str, size: int, what: str, hint: str = "") -> None:
    """Raise UserError unless `size` is at least one and the pool has that many rows."""
    if size < 1:
        raise UserError(f"{what} is {size}; it must be at least 1.")
    if size > (there := pool_size(dataset, pool)):
        raise UserError(
            f"{what} is {size}, but the {pool} pool of '{dataset.name}' has only {there} examples."
            f"{' ' + hint if hint else ''}"
        )


def require_columns(dataset: DatasetEntry, pool: str, columns: Sequence[str], who: str) -> None:
    """Raise UserError, with the first row that lacks one, unless a pool has all `columns`."""
    source = loader(dataset)
    if set(columns) <= source.columns(pool):
        return
    for number, row in enumerate(source.pool(pool)):
        if lacking := [column for column in columns if column not in row]:
            raise UserError(
                f"{source.where(pool, number)} lacks {', '.join(lacking)}; {who} needs "
                f"{', '.join(columns)} in every row of the {pool} pool of '{dataset.name}'."
            )


def is_unpaired(dataset: DatasetEntry) -> bool:
    """Whether the preference pool has completions with labels, and no pairs."""
    there = loader(dataset).columns("preference")
    return there >= set(UNPAIRED) and not there >= set(PAIRS)


def is_paired(dataset: DatasetEntry) -> bool:
    """Whether every row of the preference pool has a chosen and a rejected answer."""
    return has_pool(dataset, "preference") and loader(dataset).columns("preference") >= set(PAIRS)


def require_labels(dataset: DatasetEntry, size: int | None, who: str) -> None:
    """Raise UserError unless the first `size` rows of an unpaired pool have both labels."""
    found = {row["label"] for row in rows(dataset, "preference", size)}
    if len(found) < 2:
        first = "all" if size is None else f"the first {size}"
        labels = " and ".join(str(label).lower() for label in found)
        raise UserError(
            f"{first} examples of the preference pool of '{dataset.name}' have the label {labels}; "
            f"{who} needs true and false among them: mix the rows, or take more."
        )


def where(dataset: DatasetEntry, pool: str, number: int) -> str:
    """A row of a pool, counted from 0, as an error message names it."""
    return loader(dataset).where(pool, number)


def rows(dataset: DatasetEntry, pool: str, size: int | None = None) -> list[Row]:
    """The first `size` rows of a pool; all without a size."""
    if size is not None:
        require(dataset, pool, size, f"the size asked of '{dataset.name}'")
    return loader(dataset).pool(pool)[:size]


def prompt_text(row: Row) -> str:
    """The words of a prompt without its chat template, for people."""
    return "\n".join(message["content"] for message in row["prompt"])
