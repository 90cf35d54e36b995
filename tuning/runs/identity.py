"""Hashes of settings, numbers in run names, and the differences between two runs' settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FORMAT = 2
"""Version of the files on disk; run directories and plans of another one are never modified."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def number(value: float) -> str:
    """The fewest digits that round-trip, at least one decimal: 2 -> 2.0, 1.25 -> 1.25."""
    return repr(float(value))


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """`name: theirs -> ours` for every setting in which two nested mappings differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted(ours.keys() | theirs.keys()):
            lines += differences(ours.get(key), theirs.get(key), f"{prefix}{key}.")
        return lines
    return [] if ours == theirs else [f"{prefix.rstrip('.')}: {theirs} -> {ours}"]
