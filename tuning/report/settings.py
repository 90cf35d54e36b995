"""Settings and provenance of every run side by side; values that all runs share appear once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.report.formats import UNKNOWN
from tuning.report.labels import Labels
from tuning.report.rows import TUNED, Row

_LEFT_OUT = ("time", "slurm_job")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A table with a line for each setting and a column for each run."""

    title: str
    columns: list[str]
    lines: list[tuple[str, list[str]]]
    """The setting and its values; one value if all runs share it."""


def settings(rows: Sequence[Row], labels: Labels) -> list[Matrix]:
    """A table of settings for each kind of run, and one for the provenance of all."""
    found = _runs(rows)
    names = {key: labels.label(row) for key, (row, _) in found.items()}
    matrices = []
    for title, kinds in (
        ("Pre-training", ("base",)),
        ("SFT", ("sft", "reference_sft")),
        ("Preference tuning", TUNED),
    ):
        mine = {key: config for key, (row, config) in found.items() if row.role in kinds}
        flat = {k: _identity(c) | _flat(c.get("settings") or {}) for k, c in mine.items()}
        matrices.append(_matrix(title, names, flat))
    matrices.append(_sampling(rows))
    provenance = {key: _flat(_provenance(config)) for key, (_, config) in found.items()}
    matrices.append(_matrix("Provenance", names, provenance))
    return [matrix for matrix in matrices if matrix.lines]


def _runs(rows: Sequence[Row]) -> dict[str, tuple[Row, dict[str, Any]]]:
    """Runs that have a config.json, by its hash."""
    return {str(row.config["hash"]): (row, row.config) for row in rows if row.config}


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    parent = config.get("parent") or {}
    return {
        "run": config.get("run_name"),
        "config hash": str(config.get("hash"))[:16],
        "parent": parent.get("run_name"),
        "artifact": config.get("artifact"),
    }


def _sampling(rows: Sequence[Row]) -> Matrix:
    """How models were sampled and scored; one column if that is the same for all."""
    columns: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.evaluation_config is not None:
            columns.setdefault(row.model or "", _evaluation(row.evaluation_config))
    different = {str(column): column for column in columns.values()}
    if len(different) == 1:
        columns = dict(zip(["every model"], different.values(), strict=True))
    return _matrix("Evaluation", {name: name for name in columns}, columns)


def _evaluation(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = config.get("settings") or {}
    kept = ("dataset", "version", "task", "sampling")
    return _flat({key: settings[key] for key in kept if key in settings})


def _provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("provenance") or {}
    return {key: value for key, value in found.items() if key not in _LEFT_OUT}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"seed": 1}} -> {"training.seed": 1}"""
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= _flat(entry, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def _matrix(
    title: str, names: Mapping[str, str], columns: Mapping[str, Mapping[str, Any]]
) -> Matrix:
    lines = []
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        values = [_text(column.get(key)) for column in columns.values()]
        lines.append((key, values if len(set(values)) > 1 else values[:1]))
    return Matrix(title=title, columns=[names[key] for key in columns], lines=lines)


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or UNKNOWN
    return str(value)
