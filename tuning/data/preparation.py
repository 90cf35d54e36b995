"""Makes the pools of a published dataset, once, as plain files under TUNING_HOME/data/datasets.

    {name}/raw/{kind}.jsonl     the usable rows of each source, in the order of the source
    {name}/{pool}.jsonl         the pools, in a seeded order, so that a subset is a prefix
    {name}/manifest.json        sources and their versions, counts, digests, what was left out

A prompt is in one pool only, however many rows it has: those of the test set are in no other pool,
some are held out for validation, and those that both SFT and preference data have are divided.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data import raw
from tuning.data.recipes import KINDS, Recipe, Row, Unusable
from tuning.data.rows import asked_as, checked_row, question_key
from tuning.runs import atomic, typed
from tuning.runs.content import file_hash
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT
from tuning.runs.json_text import parse_object
from tuning.runs.log import logger

MANIFEST = "manifest.json"
VALIDATION = 256
"""Prompts that are held out of SFT data, a tenth of them at most."""
PAIRS_PER_PROMPT = 8
"""Most preference pairs of one prompt."""
SEED = 42
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
    name: str, recipe: Recipe, sources: Mapping[str, str] | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Make the pools from these sources, by kind, and those that were read before; the manifest.

    A source that was read already, in this version of the recipe, is not read again (`force`: it
    is). Raises UserError for a source that cannot be had or has no usable row.
    """
    sources = recipe.sources if sources is None else sources
    with _locked(folder_of(name)) as folder:
        known = {} if force else (manifest_of(name) or {"sources": {}})["sources"]
        for kind, source in sources.items():
            if _is_here(folder, kind, known.get(kind), source, recipe):
                logger.info(f"{name}: {kind} is here already, from {source}")
                continue
            known[kind] = _read(folder, kind, source, recipe)
        return _assemble(
            folder, name, recipe, {kind: known[kind] for kind in KINDS if kind in known}
        )


def _is_here(
    folder: Path, kind: str, known: Mapping[str, Any] | None, source: str, recipe: Recipe
) -> bool:
    """Whether a source was read, by this version of the recipe; a file, as it is now."""
    if known is None or not _is_intact(folder, kind, known):
        return False
    if (known["source"], known["recipe"]) != (source, recipe.version):
        return False
    file = site.expanded(source)
    return not raw.is_file(source) or (file.is_file() and file_hash(file) == known["version"])


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

    found = raw.read(source)
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    first: dict[str, str] = {}
    for where, published in tqdm(found, desc=f"{kind} of {source}", unit="row", total=len(found)):
        try:
            rows += [_checked(kind, row, recipe) for row in recipe.rows(kind, published)]
        except (Unusable, UserError) as error:
            reason = str(error).removeprefix("it: ")
            left_out[reason] += 1
            first.setdefault(reason, where)
    if not rows:
        reasons = "; ".join(f"{reason} ({first[reason]})" for reason in left_out) or "it is empty"
        raise UserError(f"no row of '{source}' can be used as {kind} data: {reasons}.")
    path = _raw_rows(folder, kind)
    _write(path, rows)
    return {
        "sha256": _sha256(path),
        "source": source,
        "version": found.version,
        "recipe": recipe.version,
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
                f"that again: give it as --source with --force."
            )
    pools, dropped = divide({kind: _rows(_raw_rows(folder, kind)) for kind in sources})
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


def divide(read: Mapping[str, Sequence[Row]]) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """The pools of what was read, each in a seeded order, and what was dropped and why."""
    dropped: Counter[str] = Counter()
    test = _first_of_each(read.get("test", ()), dropped, "test prompts that occur twice")
    tested = {_key(row) for row in test}
    sft = _without(tested, read.get("sft", ()), dropped, "sft rows of test prompts")
    pairs = _without(tested, read.get("preference", ()), dropped, "preference rows of test prompts")
    in_sft, in_pairs = {_key(row) for row in sft}, {_key(row) for row in pairs}
    held_out = set(sorted(in_sft, key=_draw)[: min(VALIDATION, len(in_sft) // 10)])
    both = (in_sft & in_pairs) - held_out
    of_pairs = {key for key in both if _draw(("side", key)) % 2}
    rest = [row for row in sft if _key(row) not in held_out]
    validation = [row for row in sft if _key(row) in held_out]
    here = "rows of prompts in other pools"
    pools = {
        "sft": _without(of_pairs, rest, dropped, f"sft {here}"),
        "preference": _capped(
            _without(held_out | (both - of_pairs), pairs, dropped, f"preference {here}"), dropped
        ),
        "validation": _first_of_each(validation, dropped, "further validation rows of a prompt"),
        "test": test,
    }
    ordered = {pool: sorted(rows, key=_draw) for pool, rows in pools.items() if rows}
    return ordered, {why: count for why, count in dropped.items() if count}


def _without(keys: set[Any], rows: Sequence[Row], dropped: Counter[str], why: str) -> list[Row]:
    """The rows of other prompts than these."""
    kept = [row for row in rows if _key(row) not in keys]
    dropped[why] += len(rows) - len(kept)
    return kept


def _capped(rows: Iterable[Row], dropped: Counter[str]) -> list[Row]:
    """At most PAIRS_PER_PROMPT rows of each prompt, drawn."""
    by_prompt: dict[Any, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(_key(row), []).append(row)
    kept = [
        row for some in by_prompt.values() for row in sorted(some, key=_draw)[:PAIRS_PER_PROMPT]
    ]
    there = sum(map(len, by_prompt.values()))
    dropped[f"pairs beyond {PAIRS_PER_PROMPT} of a prompt"] += there - len(kept)
    return kept


def _first_of_each(rows: Iterable[Row], dropped: Counter[str], why: str) -> list[Row]:
    """The first row of each prompt."""
    found: dict[Any, Row] = {}
    for row in rows:
        if found.setdefault(_key(row), row) is not row:
            dropped[why] += 1
    return list(found.values())


def _key(row: Row) -> Any:
    """What makes two rows the same problem: what is asked, whatever the system message."""
    return question_key(row["prompt"])


def _draw(value: Any) -> int:
    """A number that is random but for what it is of: the order of rows and the fate of prompts do
    not depend on which others there are, or in which order they came.
    """
    text = json.dumps([SEED, value], sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


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
        "prompts": len({_key(row) for row in rows}),
        "columns": sorted(set.intersection(*(set(row) for row in rows))),
        "sha256": _sha256(path),
    }
