"""Names that become folders, files, job names and words of commands: which are allowed, how others
are written, and how long they may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from tuning.runs.errors import UserError

_ALLOWED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_OTHER = re.compile(r"[^A-Za-z0-9_.@+-]+")
LONGEST = 210
"""Bytes of a name: file systems take 255, and hashes, `_eval-...`, `.json` and the ending of a
temporary file are added."""


def require_name(kind: str, name: str) -> str:
    """Return `name`, or raise UserError if it cannot name a folder, a job and a flag's value."""
    if not _ALLOWED.fullmatch(name):
        raise UserError(
            f"{kind} {_quoted(name)} cannot name a folder; use letters (a-z, A-Z), digits and "
            f". _ - @ +, with no sign but _ in front: '{written(name)}'."
        )
    return name


def require_file_name(kind: str, name: str) -> str:
    """Return a name that was read from a file of ours, or raise UserError if it leads elsewhere."""
    if name in ("", ".", "..") or {"/", "\0"} & set(name):
        raise UserError(f"{kind} {_quoted(name)} cannot name a folder; the file was edited.")
    return name


def require_distinct(kind: str, names: Iterable[str]) -> None:
    """Raise UserError for two names that are one folder where upper and lower case are the same."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"{kind} '{other}' and '{name}' differ in upper and lower case only; not every "
                "file system tells them apart: rename one."
            )


def require_told_apart(kind: str, names: Iterable[str]) -> None:
    """Raise UserError for two names that are written as one: `a/b` and `a--b`."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(written(name), name)
        if other != name:
            raise UserError(
                f"{kind} '{other}' and '{name}' are both written '{written(name)}' on disk; rename "
                "one."
            )


def require_fits(kind: str, name: str) -> None:
    """Raise UserError for a name that is too long for the files that are called by it."""
    if len(name.encode()) > LONGEST:
        raise UserError(
            f"{kind} {_quoted(name)} has {len(name.encode())} characters; {LONGEST} are possible: "
            "shorten the names of the model, the dataset or the experiment."
        )


def written(text: str) -> str:
    """Any text as a name: `/` as `--`, other signs as `-`."""
    return _OTHER.sub("-", text.replace("/", "--")).lstrip("-.@+") or "unnamed"


def folder_label(folder: PurePath) -> str:
    """What a folder of a model is called: `model` names nothing, and a checkpoint no run."""
    if folder.name == "model" and folder.parent.name:
        return folder_label(folder.parent)
    if folder.name.startswith("checkpoint-") and folder.parent.name:
        return f"{folder_label(folder.parent)}-{folder.name}"
    return folder.name


def _quoted(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"
