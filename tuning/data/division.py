"""Divides the rows that were read of a published dataset into pools.

A prompt is in one pool only, however many rows it has: those of the test set are in no other pool,
some are held out for validation unless there is a source for it, and those that both SFT and
preference data have are divided: SFT keeps one in two, or as a recipe says. What becomes of a
prompt depends on nothing but itself and on which sources have it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.data.recipes import Row
from tuning.data.rows import opening_key, prompt_key, question_key, without_system

VALIDATION = 256
"""Prompts that are held out of SFT data, a tenth of them at most."""
PER_PROMPT = 8
"""Most preference rows of one prompt."""
SEED = 42
Key = bytes


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A row, and what tells its prompt from others."""

    row: Row
    key: Key
    """Of what is asked, however it is spelled and whatever the system message."""
    opening: Key | None
    """Of the first turn of a conversation."""
    fate: tuple[int, int]
    """Two draws: whether the prompt is held out, and on which side it is where two have it."""


def divide(
    read: Mapping[str, Sequence[Row]], sft_keeps: int = 2
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """The pools of what was read, each in a seeded order, and what was dropped and why. Of prompts
    that both have, SFT keeps one in `sft_keeps`.
    """
    asked = {kind: [_asked(row) for row in rows] for kind, rows in read.items()}
    fates = _fates(asked)
    dropped: Counter[str] = Counter()
    test = _first_of_each(asked.get("test", ()), dropped, "test prompts that occur twice")
    tested = _keys(test)
    sft, pairs, given = (
        _untested(tested, asked.get(kind, ()), dropped, f"{kind} rows of test prompts")
        for kind in ("sft", "preference", "validation")
    )
    in_sft, in_pairs = _keys(sft), _keys(pairs)
    held_out = _keys(given) or _drawn(in_sft, fates)
    both = (in_sft & in_pairs) - held_out
    of_pairs = {key for key in both if fates[key][1] % sft_keeps}
    here = "rows of prompts in other pools"
    rest = _without(held_out, sft, dropped if given else Counter(), f"sft {here}")
    validation = given or [one for one in sft if one.key in held_out]
    pools = {
        "sft": _without(of_pairs, rest, dropped, f"sft {here}"),
        "preference": _capped(
            _without(held_out | (both - of_pairs), pairs, dropped, f"preference {here}"), dropped
        ),
        "validation": _first_of_each(validation, dropped, "further validation rows of a prompt"),
        "test": test,
    }
    ordered = {
        pool: sorted((one.row for one in rows), key=draw) for pool, rows in pools.items() if rows
    }
    return ordered, {why: count for why, count in dropped.items() if count}


def prompts(rows: Iterable[Row]) -> int:
    """How many different prompts rows have."""
    return len({_digest(question_key(row["prompt"])) for row in rows})


def draw(value: Any) -> int:
    """A number that is random but for what it is of: the order of rows and the fate of prompts do
    not depend on which others there are, or in which order they came.
    """
    text = json.dumps([SEED, value], sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _asked(row: Row) -> _Asked:
    opening, spelled = opening_key(row["prompt"]), prompt_key(without_system(row["prompt"]))
    return _Asked(
        row=row,
        key=_digest(question_key(row["prompt"])),
        opening=_digest(opening) if opening else None,
        fate=(draw(spelled), draw(("side", spelled))),
    )


def _digest(key: Any) -> Key:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()


def _fates(asked: Mapping[str, Sequence[_Asked]]) -> dict[Key, tuple[int, int]]:
    """The fate of each prompt; the least of those of its spellings."""
    found: dict[Key, tuple[int, int]] = {}
    for rows in asked.values():
        for one in rows:
            found[one.key] = min(found.get(one.key, one.fate), one.fate)
    return found


def _drawn(keys: set[Key], fates: Mapping[Key, tuple[int, int]]) -> set[Key]:
    """The prompts that are held out of these."""
    most = min(VALIDATION, len(keys) // 10)
    return set(sorted(keys, key=lambda key: fates[key])[:most])


def _keys(rows: Iterable[_Asked]) -> set[Key]:
    return {one.key for one in rows}


def _untested(
    tested: set[Key], rows: Sequence[_Asked], dropped: Counter[str], why: str
) -> list[_Asked]:
    """The rows that neither ask what is tested nor begin with it."""
    kept = [one for one in rows if one.key not in tested and one.opening not in tested]
    dropped[why] += len(rows) - len(kept)
    return kept


def _without(
    keys: set[Key], rows: Sequence[_Asked], dropped: Counter[str], why: str
) -> list[_Asked]:
    """The rows of other prompts than these."""
    kept = [one for one in rows if one.key not in keys]
    dropped[why] += len(rows) - len(kept)
    return kept


def _capped(rows: Iterable[_Asked], dropped: Counter[str]) -> list[_Asked]:
    """At most PER_PROMPT rows of each prompt, drawn."""
    by_prompt: dict[Key, list[_Asked]] = {}
    for one in rows:
        by_prompt.setdefault(one.key, []).append(one)
    kept = [
        one
        for some in by_prompt.values()
        for one in sorted(some, key=lambda one: draw(one.row))[:PER_PROMPT]
    ]
    there = sum(map(len, by_prompt.values()))
    dropped[f"pairs beyond {PER_PROMPT} of a prompt"] += there - len(kept)
    return kept


def _first_of_each(rows: Iterable[_Asked], dropped: Counter[str], why: str) -> list[_Asked]:
    """The first row of each prompt."""
    found: dict[Key, _Asked] = {}
    for one in rows:
        if found.setdefault(one.key, one) is not one:
            dropped[why] += 1
    return list(found.values())
