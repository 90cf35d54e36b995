"""Datasets of the hub, or of files, in the forms that are common there: a few lines of
collections.yaml name the source of each kind (loader `published`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from tuning import config as site
from tuning.data.recipes import RECIPES, Recipe, Row, Unusable, conventional_rows
from tuning.data.rows import LABEL, answers_of, is_unpaired
from tuning.runs.errors import choose
from tuning.tasks.registry import TASKS

FORMS = ("prompt", "completion", "messages", "chosen", "rejected", LABEL)
"""The columns that make a row; those that a task grades by are carried along."""


def recipe_of(entry: site.DatasetEntry) -> Recipe:
    """How the pools of a dataset are made; UserError for columns of ours that there are not."""
    if entry.loader in RECIPES:
        return RECIPES[entry.loader]
    for ours in entry.columns:
        choose(f"column of dataset '{entry.name}':", ours, dict.fromkeys((*FORMS, *_graded())))
    return Recipe(
        sources=entry.sources,
        rows=partial(published_rows, entry.columns),
        system_message=entry.system_message,
        options={"columns": dict(entry.columns), "system_message": entry.system_message},
        folder=site.collections_path().parent,
        made_by=f"python tuning/data/prepare.py {entry.name}",
    )


def published_rows(
    columns: Mapping[str, str], kind: str, published: Mapping[str, Any]
) -> Iterable[Row]:
    """Rows of the conventional forms, in which `columns` says what a column of ours is called; see
    `conventional_rows`. Only columns that somebody reads are kept.
    """
    raw = dict(published)
    raw |= {ours: raw[theirs] for ours, theirs in columns.items() if theirs in raw}
    graded = {name: raw[name] for name in _graded() if raw.get(name) is not None}
    for name, value in graded.items():
        _require_json(name, value)
    names = (*FORMS, "response")
    row = {name: _turns(raw[name]) for name in names if raw.get(name) is not None}
    made = []
    for one in conventional_rows(kind, row):
        kept = ("prompt", *answers_of(kind, one), *([LABEL] if is_unpaired(kind, one) else []))
        made.append({name: one[name] for name in kept if name in one} | graded)
    for one in made:
        _require_answers(kind, one, graded)
    return made


def _require_answers(kind: str, row: Row, graded: Mapping[str, Any]) -> None:
    """Raise Unusable for a row that nobody could learn from."""
    if all(name in row for name in answers_of(kind, row)):
        return
    if kind != "preference":
        raise Unusable("lacks completion, and messages that end with an answer")
    if not graded:
        raise Unusable("lacks chosen and rejected, completion and label, and what a task grades by")


def _graded() -> list[str]:
    """The columns that some task grades by."""
    return list(dict.fromkeys(name for task in TASKS.values() for name in task.columns))


def _turns(value: Any) -> Any:
    """Messages without what else they are published with; any other value as it is."""
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return [{name: turn.get(name) for name in ("role", "content")} for turn in value]
    return value


def _require_json(name: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise Unusable(f"has a value of {name} that JSON cannot hold") from None
