"""Datasets of one's own: a JSON lines file a pool, named in collections.yaml.

Prompts and answers are strings or lists of chat messages; other columns are kept as they are. Every
row has a prompt; what else it needs depends on who reads it. A pool's order is the order of its
file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuning.config import DatasetEntry
from tuning.data.rows import (
    ANSWERS,
    Messages,
    asked_as,
    checked_row,
    is_unpaired,
    opening_key,
    prompt_key,
    question_key,
)
from tuning.runs.errors import UserError
from tuning.runs.json_text import parse_object, text_lines


class JsonLines:
    """A dataset whose pools are local files."""

    def __init__(self, entry: DatasetEntry) -> None:
        self.name = entry.name
        self.system_message = entry.system_message
        self._files = {pool: Path(file) for pool, file in entry.files.items()}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._lines: dict[str, list[int]] = {}
        self._columns: dict[str, frozenset[str]] = {}

    def version(self, pools: Sequence[str]) -> str:
        """The first digits of a SHA-256 over the files of `pools`, and the system message."""
        total = hashlib.sha256((self.system_message or "").encode())
        for pool in sorted(pools):
            self._require(pool)
            total.update(pool.encode() + self._read(pool))
        return total.hexdigest()[:16]

    def pool(self, name: str) -> list[dict[str, Any]]:
        """The rows of one pool. All pools that are there are read and checked the first time that
        one is asked for.
        """
        self._require(name)
        if name not in self._rows:
            there = [pool for pool, file in self._files.items() if pool == name or file.exists()]
            pools = {pool: self._parse(pool) for pool in there}
            rows = {pool: list(by_line.values()) for pool, by_line in pools.items()}
            self._lines = {pool: list(by_line) for pool, by_line in pools.items()}
            self._check_disjoint(rows)
            self._rows = rows
        return self._rows[name]

    def _require(self, pool: str) -> None:
        if pool not in self._files:
            raise UserError(f"dataset '{self.name}' has no {pool} pool; add a line '{pool}: FILE'.")

    def _parse(self, pool: str) -> dict[int, dict[str, Any]]:
        """The rows by the number of their line."""
        lines = text_lines(self._read(pool).split(b"\n"), self._files[pool].name)
        return {number: self._row(pool, number, line) for number, line in lines}

    def size(self, name: str) -> int:
        """How many rows a pool has."""
        return len(self.pool(name))

    def columns(self, name: str) -> frozenset[str]:
        """The columns that every row of a pool has."""
        if name not in self._columns:
            rows = self.pool(name)
            self._columns[name] = frozenset(rows[0] if rows else ("prompt", *ANSWERS[name]))
            for row in rows:
                self._columns[name] &= row.keys()
        return self._columns[name]

    def where(self, name: str, number: int) -> str:
        """A row by its file and line."""
        self.pool(name)
        return self._place(name, number)

    def _place(self, name: str, number: int) -> str:
        return f"{self._files[name].name}:{self._lines[name][number]}"

    def _read(self, pool: str) -> bytes:
        try:
            return self._files[pool].read_bytes()
        except OSError as error:
            raise UserError(
                f"dataset '{self.name}': '{self._files[pool]}' cannot be read ({error.strerror})."
            ) from None

    def _row(self, pool: str, number: int, line: str) -> dict[str, Any]:
        where = f"{self._files[pool].name}:{number}"
        return asked_as(checked_row(pool, parse_object(line, where), where), self.system_message)

    def _check_disjoint(self, pools: dict[str, list[dict[str, Any]]]) -> None:
        """Raise UserError if a prompt occurs twice in a pool, or, however it is spelled and
        whatever its system message, in two; or if a conversation begins with a test prompt.
        """
        seen: dict[Any, tuple[str, int]] = {}
        begun: dict[Any, tuple[str, int]] = {}
        for pool, rows in sorted(pools.items(), key=lambda entry: entry[0] == "test"):
            here: dict[Any, tuple[str, int]] = {}
            asked: dict[Any, tuple[str, int]] = {}
            for number, row in enumerate(rows):
                key, what = _told_by(pool, row), question_key(row["prompt"])
                other = here.get(key) or seen.get(what) or (pool == "test" and begun.get(what))
                if other:
                    raise self._repeated(row["prompt"], *other, pool, number)
                here[key] = (pool, number)
                asked.setdefault(what, (pool, number))
                begun.setdefault(opening_key(row["prompt"]), (pool, number))
            seen |= asked

    def _repeated(
        self, prompt: Messages, pool: str, number: int, other: str, place: int
    ) -> UserError:
        """The error for a prompt of two rows."""
        rows = f"{self._place(pool, number)} and {self._place(other, place)}"
        text = json.dumps(prompt)[:80]
        if pool == other:
            return UserError(
                f"dataset '{self.name}': the {pool} pool repeats a prompt, {rows}: {text}"
            )
        return UserError(
            f"dataset '{self.name}': a prompt is both in {pool} and {other}, {rows}; the pools "
            f"must not share any, also where blanks or letter case differ, or as the first turn of "
            f"a conversation: {text}"
        )


def _told_by(pool: str, row: dict[str, Any]) -> Any:
    """What tells a row from the others of its pool: the prompt, and an unpaired answer."""
    key = prompt_key(row["prompt"])
    return (key, prompt_key(row.get("completion", ()))) if is_unpaired(pool, row) else key
