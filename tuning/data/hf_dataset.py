"""Datasets of one's own: a JSON lines file a pool, named in collections.yaml.

Prompts and answers are strings or lists of chat messages. A pool's order is the order of its file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tuning.config import DatasetEntry
from tuning.runs.errors import UserError

COLUMNS = {
    "sft": ("prompt", "completion"),
    "validation": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "test": ("prompt", "answer"),
}


class JsonLines:
    """A dataset whose pools are local files."""

    def __init__(self, entry: DatasetEntry, root: Path) -> None:
        self.name = entry.name
        self._files = {pool: (root / file).resolve() for pool, file in entry.files.items()}
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def version(self) -> str:
        """The first digits of a SHA-256 over the files."""
        total = hashlib.sha256()
        for pool in sorted(self._files):
            total.update(pool.encode() + self._read(pool))
        return total.hexdigest()[:16]

    def pool(self, name: str) -> list[dict[str, Any]]:
        """The rows of one pool, checked."""
        if name not in self._files:
            raise UserError(f"dataset '{self.name}' has no {name} pool; add a line '{name}: FILE'.")
        if name not in self._rows:
            lines = self._read(name).decode("utf-8").splitlines()
            self._rows[name] = [
                self._row(name, number, line)
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
            self._check_disjoint(name)
        return self._rows[name]

    def size(self, name: str) -> int:
        """How many rows a pool has."""
        return len(self.pool(name))

    def _read(self, pool: str) -> bytes:
        try:
            return self._files[pool].read_bytes()
        except OSError as error:
            raise UserError(
                f"dataset '{self.name}': '{self._files[pool]}' cannot be read ({error.strerror})."
            ) from None

    def _row(self, pool: str, number: int, line: str) -> dict[str, Any]:
        where = f"{self._files[pool].name}:{number}"
        try:
            raw = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON: {error.msg}.") from None
        if missing := [c for c in COLUMNS[pool] if c not in raw]:
            raise UserError(f"{where} lacks {', '.join(missing)}; a {pool} row needs "
                            f"{', '.join(COLUMNS[pool])}.")  # fmt: skip
        roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant",
                 "rejected": "assistant"}  # fmt: skip
        row = dict(raw)
        for column, role in roles.items():
            if isinstance(row.get(column), str):
                row[column] = [{"role": role, "content": row[column]}]
        if "answer" in row:
            row["answer"] = str(row["answer"])
        return row

    def _check_disjoint(self, name: str) -> None:
        ours = {json.dumps(row["prompt"]) for row in self._rows[name]}
        if len(ours) < len(self._rows[name]):
            raise UserError(f"dataset '{self.name}': the {name} pool repeats a prompt.")
        for other, there in self._rows.items():
            if other != name and (shared := ours & {json.dumps(row["prompt"]) for row in there}):
                raise UserError(
                    f"dataset '{self.name}': {len(shared)} prompts stand both in {name} and "
                    f"{other}; the pools must not share any."
                )
