"""The one door to data: a pool of a dataset by name, as plain rows in one seeded order.

    sft, validation   {"prompt": [messages], "completion": [messages]}
    preference        {"prompt": [messages], "chosen": [messages], "rejected": [messages]};
                      for grpo also "answer": str
    test              {"prompt": [messages], "answer": str}

A subset is a prefix of its pool, so that subsets are nested. No pool shares a prompt with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from tuning.config import DatasetEntry
from tuning.runs.errors import UserError, choose

Row = dict[str, Any]

POOL_OF_TYPE = {"sft": "sft", "pt": "preference"}
READ_BY_TYPE = {"sft": ("sft", "validation"), "pt": ("preference",), "test": ("test",)}
"""The pools that SFT, preference tuning and evaluation read."""
LATER = ("gsm8k", "tuluif")


class Loader(Protocol):
    """What a dataset brings: a version that changes with its content, and its pools."""

    def version(self, pools: Sequence[str]) -> str: ...

    def pool(self, name: str) -> list[Row]: ...

    def size(self, name: str) -> int: ...

    def answers(self) -> bool: ...


class _Arith:
    """The synthetic dataset, made once a process."""

    def __init__(self) -> None:
        from tuning.data import arith

        self._arith = arith
        self._pools: dict[str, list[Row]] = {}

    def version(self, pools: Sequence[str]) -> str:
        return self._arith.VERSION

    def pool(self, name: str) -> list[Row]:
        self._pools = self._pools or self._arith.pools()
        return self._pools[name]

    def answers(self) -> bool:
        return True

    def size(self, name: str) -> int:
        return {
            "sft": self._arith.SFT,
            "preference": self._arith.PREFERENCE,
            "validation": self._arith.VALIDATION,
            "test": self._arith.TEST,
        }[name]


@lru_cache(maxsize=8)
def _loader(name: str, loader: str, files: tuple[tuple[str, str], ...]) -> Loader:
    from tuning.data import jsonl

    if loader == "arith":
        return _Arith()
    if loader == "jsonl":
        return jsonl.JsonLines(DatasetEntry(name=name, loader=loader, files=dict(files)))
    if loader in LATER:
        raise UserError(
            f"dataset '{name}' has no loader yet in this version; 'arith' works, and "
            "your own files do with 'loader: jsonl' in collections.yaml."
        )
    choose(f"loader of dataset '{name}':", loader, ("arith", "jsonl", *LATER))
    raise AssertionError("choose() raises for what is not listed")


def loader(dataset: DatasetEntry) -> Loader:
    """The loader of a dataset."""
    return _loader(dataset.name, dataset.loader, tuple(sorted(dataset.files.items())))


def version(dataset: DatasetEntry, kind: str) -> str:
    """Changes when the content of any pool does that a run of a kind reads; part of its hash."""
    return loader(dataset).version(READ_BY_TYPE[kind])


def require_version(dataset: DatasetEntry, kind: str, wanted: str) -> None:
    """Raise UserError where a dataset is no longer what a run was configured with."""
    if version(dataset, kind) != wanted:
        raise UserError(
            f"the files of dataset '{dataset.name}' were changed since this run was configured; "
            "restore them, or start the experiment anew: the changed data make other runs."
        )


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


def require_answers(dataset: DatasetEntry) -> None:
    """Raise UserError unless the preference pool has reference answers, which grpo rewards by."""
    if not loader(dataset).answers():
        raise UserError(
            f"grpo needs a reference answer a prompt; the preference pool of '{dataset.name}' "
            "lacks 'answer' in some rows."
        )


def rows(dataset: DatasetEntry, pool: str, size: int | None = None) -> list[Row]:
    """The first `size` rows of a pool; all without a size."""
    if size is not None:
        require(dataset, pool, size, f"the size asked of '{dataset.name}'")
    return loader(dataset).pool(pool)[:size]


def prompt_text(row: Row) -> str:
    """The words of a prompt without its chat template; what makes two rows the same problem."""
    return "\n".join(message["content"] for message in row["prompt"])
