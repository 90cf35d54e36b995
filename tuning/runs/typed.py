"""Files of ours, read with the types that their values must have: people edit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.json_text import shown

_NUMBER = (int, float)
CONFIG = {
    **dict.fromkeys(("hash", "kind", "run_name"), str),
    **dict.fromkeys(("settings", "hashed", "provenance"), dict),
    "parent": (dict, type(None)),
    "artifact": (str, type(None)),
}
STATUS = {"state": str, "reason": str, "phases": dict}
PHASE = {"state": str, "seconds": _NUMBER}
_COUNTS = ("global_step", "train_size", "data_points_seen", "data_used", "train_tokens")
RESULT = {
    **dict.fromkeys((*_COUNTS, "train_seconds", "perplexity", "base_perplexity"), _NUMBER),
    "sweetspots": dict,
}
_INTERVAL = dict.fromkeys(("estimate", "low", "high"), _NUMBER)
SCORES = {
    **dict.fromkeys(("prompts", "samples"), int),
    **dict.fromkeys(("pass_at_k", "parts"), dict),
    **dict.fromkeys(("correct", "first_right"), list),
}
"""The types of what the files of a run have, where they have it."""


def read(
    path: Path, types: Mapping[str, Any], required: Iterable[str] = ()
) -> dict[str, Any] | None:
    """The object in a file; None without a file, UserError for values of other types, or where one
    that is required is not there.
    """
    found = atomic.read_object(path)
    if found is not None:
        check(path, found, types, required=required)
    return found


def check(
    path: Path, found: Any, types: Mapping[str, Any], where: str = "", required: Iterable[str] = ()
) -> None:
    """Raise UserError unless a value is an object with these types; `where` names it."""
    if not isinstance(found, dict):
        raise _edited(path, where, found)
    if lacking := [name for name in required if name not in found]:
        raise _edited(path, f"{where}: {lacking[0]}".removeprefix(": "), None)
    for name, kind in types.items():
        if name in found and not isinstance(found[name], kind):
            raise _edited(path, f"{where}: {name}".removeprefix(": "), found[name])


def _edited(path: Path, where: str, value: Any) -> UserError:
    return UserError(
        f"'{path}' was edited or damaged: {where} is {shown(value)}; restore it, or remove the run."
    )


def scores(path: Path) -> dict[str, Any] | None:
    """scores.json of an evaluation; None without one, UserError for a damaged one."""
    found = read(path, SCORES, required=("prompts", "samples", "pass_at_k", "correct"))
    if found is not None:
        for k, interval in found["pass_at_k"].items():
            check(path, interval, _INTERVAL, f"pass_at_k: {k}", required=_INTERVAL)
            if not k.isdigit():
                raise _edited(path, "pass_at_k", k)
        if not found["pass_at_k"] or not all(type(count) is int for count in found["correct"]):
            raise _edited(path, "correct", found["correct"][:3])
    return found
