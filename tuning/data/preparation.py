"""Makes the pools of a published dataset, once, as plain files under TUNING_HOME/data/datasets.

    {name}/raw/{kind}.jsonl     the usable rows of each source, in the order of the source
    {name}/{pool}.jsonl         the pools, in a seeded order, so that a subset is a prefix
    {name}/manifest.json        sources and their versions, counts, digests, what was left out

Which row is in which pool: division.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data import raw
from tuning.data.division import SEED, divide, prompts
from tuning.data.recipes import Recipe, Row, Unusable
from tuning.data.rows import LABEL, asked_as, checked_row
from tuning.runs import atomic, typed
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.runs.json_text import parse_object
from tuning.runs.log import logger

MANIFEST = "manifest.json"
_MANIFEST = {"format": int, "sources": dict, "pools": dict}
_SOURCE = {"source": str, "version": str, "recipe": int, "sha256": str, "left_out": dict}
_POOL = {"rows": int, "prompts": int, "columns": list, "sha256": str}


def folder_of(name: str) -> Path:
    """Where the pools of a dataset are."""
    return site.home() / "data" / "datasets" / name


def manifest_of(name: str) -> dict[str, Any] | None:
    """The manifest of a dataset; None before it was made, UserError for a damaged one."""
    path = folder_of(name) / MANIFEST
    found = typed.read(path, _MANIFEST, required=_MANIFEST)
    for part, types in (("sources", _SOURCE), ("pools", _POOL)):
        for which, about in (found or {}).get(part, {}).items():
            typed.check(path, about, types, f"{part}: {which}", required=types)
    return found


def prepare(
    name: str,
    recipe: Recipe,
    sources: Mapping[str, str | None] | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Make the pools from these sources, by kind, and those that were read before; the manifest.

    A source that was read already, in this version of the recipe, is not read again (`force`: it
    is). None is the source that was read before, or the recipe's. Without `sources`, those of the
    recipe and no others. Raises UserError for a source that cannot be had or has no usable row.
    """
    with _locked(folder_of(name)) as folder:
        known = _known(name, recipe, force=force)
        if sources is None:
            sources = recipe.sources
            known = {kind: about for kind, about in known.items() if kind in sources}
        for kind in [kind for kind in site.KINDS if kind in sources]:
            asked = sources[kind]
            there = known.get(kind)
            source = asked or (there["source"] if there else recipe.sources[kind])
            if not force and _is_here(folder, kind, there, asked, recipe):
                logger.info(f"{name}: {kind} is here already, from {source}")
                continue
            known[kind] = _read(folder, kind, source, recipe)
        return _assemble(
            folder, name, recipe, {kind: known[kind] for kind in site.KINDS if kind in known}
        )


def _known(name: str, recipe: Recipe, *, force: bool) -> dict[str, Any]:
    """What was read before, by kind. `force`: nothing, where the manifest cannot be used."""
    try:
        found = manifest_of(name)
        if found is not None and found["format"] != FORMAT:
            raise UserError(
                f"dataset '{name}' was made by another version of tuning; make it again with "
                f"--force: {recipe.made_by}."
            )
    except UserError:
        if not force:
            raise
        found = None
    return dict(found["sources"]) if found else {}


def _is_here(
    folder: Path, kind: str, known: Mapping[str, Any] | None, source: str | None, recipe: Recipe
) -> bool:
    """Whether a source was read, by this version of the recipe; a local one that was asked for, as
    it is now.
    """
    if known is None or not _is_intact(folder, kind, known) or not is_of(known, source, recipe):
        return False
    return (
        source is None
        or not raw.is_local(source)
        or raw.local_version(source, recipe.folder) == known["version"]
    )


def is_of(known: Mapping[str, Any], source: str | None, recipe: Recipe) -> bool:
    """Whether rows were read of this source, with this recipe; None: of any."""
    options = known.get("options") or {}
    made = (known["recipe"], options) == (recipe.version, recipe.options)
    return made and source in (None, known["source"])


def _is_intact(folder: Path, kind: str, known: Mapping[str, Any]) -> bool:
    """Whether the rows that were read of a source are as they were written."""
    path = _raw_rows(folder, kind)
    return path.is_file() and _sha256(path) == known["sha256"]


def _raw_rows(folder: Path, kind: str) -> Path:
    return folder / "raw" / f"{kind}.jsonl"


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """One process at a time makes a dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _read(folder: Path, kind: str, source: str, recipe: Recipe) -> dict[str, Any]:
    """Write the usable rows of a source; what the manifest says of it."""
    from tqdm import tqdm

    found = raw.read(source, recipe.folder)
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    first: dict[str, str] = {}
    for where, published in tqdm(found, desc=f"{kind} of {source}", unit="row", total=len(found)):
        try:
            rows += [_checked(kind, row, recipe) for row in recipe.rows(kind, published)]
        except (Unusable, UserError) as error:
            reason = str(error).removeprefix("it: ").removeprefix("it ").rstrip(".")
            left_out[reason] += 1
            first.setdefault(reason, where)
    if not rows:
        reasons = "; ".join(f"{reason} ({first[reason]})" for reason in left_out) or "it is empty"
        columns = ", ".join(name[:40] for name in found.rows.column_names[:20])
        raise UserError(
            f"no row of '{source}' can be used as {kind} data: {reasons}; its columns are: "
            f"{columns}."
        )
    if {row.get(LABEL) for row in rows if kind == "preference"} in ({True}, {False}):
        raise UserError(
            f"'{source}' has rows of one {LABEL} only; unpaired preference data need good and bad "
            "completions."
        )
    path = _raw_rows(folder, kind)
    _write(path, rows)
    return {
        "sha256": _sha256(path),
        "source": source,
        "version": found.version,
        "recipe": recipe.version,
        "options": dict(recipe.options),
        "published": len(found),
        "rows": len(rows),
        "left_out": {reason: {"rows": n, "first": first[reason]} for reason, n in left_out.items()},
    }


def _checked(kind: str, row: Row, recipe: Recipe) -> Row:
    return asked_as(checked_row(kind, row, "it"), recipe.system_message)


def _assemble(folder: Path, name: str, recipe: Recipe, sources: dict[str, Any]) -> dict[str, Any]:
    """Divide what was read into pools, and write them and the manifest."""
    for kind, source in sources.items():
        if not _is_intact(folder, kind, source):
            raise UserError(
                f"'{_raw_rows(folder, kind)}' is not what was read of '{source['source']}'; read "
                f"that again with --force: {recipe.made_by}."
            )
    read = {kind: _rows(_raw_rows(folder, kind)) for kind in sources}
    pools, dropped = divide(read, recipe.sft_keeps)
    if gone := [kind for kind in sources if kind not in pools]:
        reasons = ", ".join(f"{count} {why}" for why, count in dropped.items())
        raise UserError(f"no row is left for the {gone[0]} pool of '{name}': {reasons}.")
    for pool, rows in pools.items():
        _write(folder / f"{pool}.jsonl", rows)
    manifest = {
        "format": FORMAT,
        "dataset": name,
        "seed": SEED,
        "sources": sources,
        "dropped": dropped,
        "pools": {pool: _described(folder / f"{pool}.jsonl", pools[pool]) for pool in pools},
    }
    atomic.write_json(folder / MANIFEST, manifest)
    return manifest


def _rows(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse_object(line, f"{path.name}:{n}") for n, line in enumerate(lines, 1)]


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _described(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """What the manifest says of a pool."""
    return {
        "rows": len(rows),
        "prompts": prompts(rows),
        "columns": sorted(set.intersection(*(set(row) for row in rows))),
        "sha256": _sha256(path),
    }
