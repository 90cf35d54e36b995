"""What a run is called and when two runs are the same one.

A configuration is a frozen dataclass. A field that cannot change the result carries
`metadata={"hashed": False}` and stays out of the hash: paths, micro-batch, logging.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any


def settings(config: Any) -> Any:
    """The hashed settings of a dataclass as plain JSON values, nested dataclasses included."""
    if is_dataclass(config):
        return {
            f.name: settings(getattr(config, f.name))
            for f in fields(config)
            if f.metadata.get("hashed", True)
        }
    if isinstance(config, tuple | list):
        return [settings(value) for value in config]
    return config


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def number(value: float) -> str:
    """The fewest digits that round-trip, at least one decimal: 2 -> 2.0, 1.25 -> 1.25."""
    return repr(float(value))


def threshold_label(threshold: float) -> str:
    """`ppl-2.0`"""
    return f"ppl-{number(threshold)}"


def patience_label(evaluations: int, decrease: float) -> str:
    """`ppl-2@0.02`: fell by less than 0.02 in each of the last 2 evaluations."""
    return f"ppl-{evaluations}@{number(decrease)}"


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """`name: theirs -> ours` for every setting in which two nested mappings differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(ours.keys() | theirs.keys()):
            found += differences(ours.get(key), theirs.get(key), f"{prefix}{key}.")
        return found
    return [] if ours == theirs else [f"{prefix.rstrip('.')}: {theirs} -> {ours}"]
