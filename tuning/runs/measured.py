"""What the training of a run changed, in its directory: before_after.json, and what it is told by.

Plans ask whether it is there as they want it, the phase that measures writes it, reports show it.
"""

from __future__ import annotations

from typing import Any

from tuning.runs import atomic
from tuning.runs.json_text import NotJSON
from tuning.runs.rundir import RunDirectory

FILE = "before_after.json"
"""In the directory of a run: what its training changed."""
PHASE = "measure"
"""The phase of a run that ends with that file."""


def read(run: RunDirectory) -> dict[str, Any] | None:
    """The content of the file; None where nothing was measured, or the file is damaged."""
    if not run.done(PHASE):
        return None
    try:
        return atomic.read_object(run.path / FILE)
    except NotJSON:
        return None


def told_by(measured: str, first_prompts: int | None) -> dict[str, Any]:
    """The entries of the file that say what was asked: the hash of what was to be measured, and how
    many test prompts were to be answered, where not all were.
    """
    return {"measured": measured} | ({"first_prompts": first_prompts} if first_prompts else {})


def holds(run: RunDirectory, measured: str, first_prompts: int | None) -> bool:
    """Whether the file has what is asked for; one made on all prompts has the first ones too."""
    found = read(run)
    if found is None or found.get("measured") != measured:
        return False
    return found.get("first_prompts") in (None, first_prompts)
