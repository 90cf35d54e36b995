"""The loaders of datasets. To add one, write a class that brings what `Loader` says in a module of
this package, and name it in LOADERS; datasets of collections.yaml use it by that name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Protocol

from tuning.config import PUBLISHED, DatasetEntry
from tuning.data import arith, ifsynth
from tuning.data.jsonl import JsonLines
from tuning.data.prepared import Prepared
from tuning.data.recipes import RECIPES
from tuning.runs.errors import choose

Row = dict[str, Any]


class Loader(Protocol):
    """What a dataset brings: a version that changes with its content, and its pools."""

    def version(self, pools: Sequence[str]) -> str:
        """Changes when the content of any of `pools` does; cheap, since every config asks."""
        ...

    def pool(self, name: str) -> list[Row]:
        """The rows of a pool in their fixed order. Prompts, completions, chosen and rejected
        answers are lists of messages; other columns are as the task or the method wants them.
        """
        ...

    def size(self, name: str) -> int:
        """How many rows a pool has."""
        ...

    def columns(self, name: str) -> frozenset[str]:
        """The columns that every row of a pool has."""
        ...

    def where(self, name: str, number: int) -> str:
        """Row `number` of a pool, counted from 0, as an error message names it."""
        ...


LOADERS: dict[str, Callable[[DatasetEntry], Loader]] = {
    "arith": arith.opened,
    "ifsynth": ifsynth.opened,
    "jsonl": JsonLines,
    **dict.fromkeys((PUBLISHED, *RECIPES), Prepared),
}


def loader(dataset: DatasetEntry) -> Loader:
    """The loader of a dataset, opened once a process; UserError for an unknown one."""
    choose(f"loader of dataset '{dataset.name}':", dataset.loader, LOADERS)
    return _opened(LOADERS[dataset.loader], json.dumps(asdict(dataset), sort_keys=True))


def forget() -> None:
    """Open datasets again: their pools were made anew."""
    _opened.cache_clear()


@lru_cache(maxsize=8)
def _opened(opens: Callable[[DatasetEntry], Loader], entry: str) -> Loader:
    return opens(DatasetEntry(**json.loads(entry)))
