"""The files of a run, read with the types that their values must have: people edit them."""

from __future__ import annotations

from collections.abc import Mapping
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
"""The types of what the files of a run have, where they have it."""


def read(path: Path, types: Mapping[str, Any]) -> dict[str, Any] | None:
    """The object in a file of a run; None without a file, UserError for values of other types."""
    found = atomic.read_object(path)
    if found is not None:
        check(path, found, types)
    return found


def check(path: Path, found: Any, types: Mapping[str, Any], where: str = "") -> None:
    if not isinstance(found, dict):
        raise _edited(path, where, found)
    for name, kind in types.items():
        if name in found and not isinstance(found[name], kind):
            raise _edited(path, f"{where}: {name}".removeprefix(": "), found[name])


def _edited(path: Path, where: str, value: Any) -> UserError:
    return UserError(
        f"'{path}' was edited or damaged: {where} is {shown(value)}; restore it, or remove the run."
    )
