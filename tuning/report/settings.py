"""Settings and provenance of every run, side by side: what all share is said once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tuning.report.row import Row

_LEFT_OUT = ("time", "slurm_job")


def settings(rows: Sequence[Row]) -> str:
    """A table a kind of run for the settings, and one for where the results came from."""
    found = _runs(rows)
    parts = []
    for title, kinds in (
        ("Pre-training", ("base",)),
        ("SFT", ("sft", "reference_sft")),
        ("Preference tuning", ("fork", "pt", "reference_pt")),
    ):
        mine = {k: v for k, v in found.items() if v[0].role in kinds}
        flat = {k: _identity(r, c) | _flat(c.get("settings") or {}) for k, (r, c) in mine.items()}
        parts.append(_matrix(title, {k: mine[k][0].label for k in mine}, flat))
    parts.append(_sampling(rows))
    where = {k: _flat(_provenance(c)) for k, (_, c) in found.items()}
    parts.append(_matrix("Provenance", {k: v[0].label for k, v in found.items()}, where))
    return "".join(parts)


def _runs(rows: Sequence[Row]) -> dict[str, tuple[Row, dict[str, Any]]]:
    """Runs that have a config.json, by its hash."""
    return {str(row.config["hash"]): (row, row.config) for row in rows if row.config}


def _identity(row: Row, config: Mapping[str, Any]) -> dict[str, Any]:
    parent = config.get("parent") or {}
    return {
        "run": config.get("run_name"),
        "config hash": str(config.get("hash"))[:16],
        "parent": parent.get("run_name"),
        "artifact": config.get("artifact"),
    }


def _sampling(rows: Sequence[Row]) -> str:
    """How models were sampled and scored; one column where all share it."""
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


def _matrix(title: str, labels: Mapping[str, str], columns: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a setting, one column a run; a value that all share spans the columns."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    if not keys:
        return ""
    head = "".join(f"<th>{escape(labels[name])}</th>" for name in columns)
    lines = []
    for key in keys:
        values = [_text(column.get(key)) for column in columns.values()]
        if len(set(values)) == 1:
            cells = f'<td class="all" colspan="{len(values)}">{escape(values[0])}</td>'
        else:
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f"<tr><td>{escape(key)}</td>{cells}</tr>")
    return (
        f'<h3>{title}</h3><div class="sheet"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "–"
    return str(value)
