"""The loader of published datasets, whose pools were made before (preparation.py). Planning reads
the manifest only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tuning.config import DatasetEntry
from tuning.data.preparation import MANIFEST, folder_of, manifest_of
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.runs.json_text import parse_object


class NotPrepared(UserError):
    """A dataset whose pools were not made yet."""

    def __init__(self, dataset: str, loader: str) -> None:
        super().__init__(
            f"dataset '{dataset}' is not here yet; make it with `tuning prefetch` and the same "
            "flags, or slurm/data_processing.sh, where the hub can be reached, or from files: "
            f"python tuning/data/{loader}_sft.py --source FILE."
        )
        self.dataset, self.loader = dataset, loader


class Prepared:
    """A dataset whose pools are files under TUNING_HOME."""

    def __init__(self, entry: DatasetEntry) -> None:
        self.name = entry.name
        self._loader = entry.loader
        self._rows: dict[str, list[dict[str, Any]]] = {}

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        found = manifest_of(self.name)
        if found is None:
            raise NotPrepared(self.name, self._loader)
        if found.get("format") != FORMAT:
            raise UserError(
                f"dataset '{self.name}' was made by another version of tuning; make it again with "
                f"--force: python tuning/data/{self._loader}_sft.py and _pref.py."
            )
        return found

    def _about(self, pool: str) -> dict[str, Any]:
        about: dict[str, Any] | None = self._manifest["pools"].get(pool)
        if about is None:
            raise UserError(
                f"dataset '{self.name}' has no {pool} pool: no source of it was read, or none of "
                f"its prompts was left; see {folder_of(self.name) / MANIFEST}."
            )
        return about

    def version(self, pools: Sequence[str]) -> str:
        """The first digits of a SHA-256 over those of the pools."""
        digests = "".join(f"{pool}:{self._about(pool)['sha256']}" for pool in sorted(pools))
        return hashlib.sha256(digests.encode()).hexdigest()[:16]

    def pool(self, name: str) -> list[dict[str, Any]]:
        """The rows of one pool; UserError where its file was changed."""
        if name not in self._rows:
            about, path = self._about(name), folder_of(self.name) / f"{name}.jsonl"
            content = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise UserError(
                    f"'{path}' is not what the manifest beside it says; make the dataset again "
                    f"with --force: python tuning/data/{self._loader}_sft.py and _pref.py."
                )
            lines = content.decode().splitlines()
            self._rows[name] = [parse_object(line, f"{path.name}") for line in lines]
        return self._rows[name]

    def size(self, name: str) -> int:
        """How many rows a pool has."""
        return int(self._about(name)["rows"])

    def columns(self, name: str) -> frozenset[str]:
        """The columns that every row of a pool has."""
        return frozenset(self._about(name)["columns"])

    def where(self, name: str, number: int) -> str:
        """A row by its file and line."""
        return f"{self.name}/{name}.jsonl:{number + 1}"
