"""The loader of datasets that are made by code: sizes and columns are known before any row is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.config import DatasetEntry

SIZES = {"sft": 10_000, "preference": 10_000, "validation": 256, "test": 1_000}
Pools = dict[str, list[dict[str, Any]]]


class Generated:
    """Pools that are a pure function of the code; nothing is downloaded or cached."""

    def __init__(
        self,
        entry: DatasetEntry,
        *,
        version: str,
        columns: Mapping[str, Sequence[str]],
        make: Callable[[], Pools],
    ) -> None:
        self.name = entry.name
        self._version = version
        self._columns = columns
        self._make = make
        self._pools: Pools = {}

    def version(self, pools: Sequence[str]) -> str:
        """That of the code, whatever the pools."""
        return self._version

    def pool(self, name: str) -> list[dict[str, Any]]:
        """All rows of a pool, in order."""
        self._pools = self._pools or self._make()
        return self._pools[name]

    def size(self, name: str) -> int:
        """Number of rows of a pool."""
        return SIZES[name]

    def columns(self, name: str) -> frozenset[str]:
        """The columns of its rows."""
        return frozenset(self._columns[name])

    def where(self, name: str, number: int) -> str:
        """How messages name row `number` (from 0) of a pool."""
        return f"{name} row {number + 1} of '{self.name}'"
