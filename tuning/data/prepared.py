"""The loader of published datasets, whose pools were made before (preparation.py). Planning reads
the manifest only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tuning.config import KINDS, DatasetEntry
from tuning.data import raw
from tuning.data.preparation import MANIFEST, folder_of, is_of, manifest_of
from tuning.data.published import recipe_of
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.runs.json_text import parse_object


class NotPrepared(UserError):
    """A dataset whose pools were not made yet, or of other sources than it has now."""

    def __init__(self, entry: DatasetEntry, why: str) -> None:
        super().__init__(
            f"{why}; make it with `tuning prefetch` and the same flags, where its sources can be "
            f"reached, or by itself: {recipe_of(entry).made_by}."
        )
        self.entry = entry


def require_current(entry: DatasetEntry) -> None:
    """Raise NotPrepared where a file or folder that collections.yaml names was edited since its
    rows were read. Planning asks; what is planned keeps the pools that it was planned with.
    """
    manifest = manifest_of(entry.name) if entry.sources else None
    for kind, about in (manifest or {}).get("sources", {}).items():
        if raw.is_local(source := about["source"]) and entry.sources.get(kind) == source:
            now = raw.local_version(source, recipe_of(entry).folder)
            if now not in (None, about["version"]):
                why = f"'{source}' was changed since dataset '{entry.name}' was made of it"
                raise NotPrepared(entry, why)


class Prepared:
    """A dataset whose pools are files under TUNING_HOME."""

    def __init__(self, entry: DatasetEntry) -> None:
        self.name = entry.name
        self._entry = entry
        self._recipe = recipe_of(entry)
        self._rows: dict[str, list[dict[str, Any]]] = {}

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        found = manifest_of(self.name)
        if found is None:
            raise NotPrepared(self._entry, f"dataset '{self.name}' is not here yet")
        if found.get("format") != FORMAT:
            raise UserError(
                f"dataset '{self.name}' was made by another version of tuning; make it again with "
                f"--force: {self._recipe.made_by}."
            )
        self._require_sources(found["sources"])
        return found

    def _require_sources(self, read: dict[str, Any]) -> None:
        """Raise NotPrepared where the pools are not those of the sources that the entry names."""
        named = self._entry.sources
        for kind in KINDS if named else ():
            there, wanted = read.get(kind), named.get(kind)
            if there is None and wanted is None:
                continue
            if there is None or wanted is None or there["source"] != wanted:
                found = there["source"] if there else "none"
                why = f"{kind} was read of '{found}' and is to be '{wanted or 'none'}'"
            elif not is_of(there, wanted, self._recipe):
                why = "columns or system_message were others"
            else:
                continue
            raise NotPrepared(
                self._entry, f"the prepared dataset '{self.name}' belongs to another entry ({why})"
            )

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
                    f"with --force: {self._recipe.made_by}."
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
