"""Atomic, durable writes: readers see the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuning.runs.json_text import NotJSON, parse, shown


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` by way of a temporary file, fsync and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None if it does not exist, NotJSON if it is damaged."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise
    except UnicodeDecodeError as error:
        raise NotJSON(f"'{path}' is not UTF-8 text ({error.reason}).") from None
    return parse(text, f"'{path}'", nan=True)


def read_object(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file that holds an object, like `read_json()`."""
    found = read_json(path)
    if found is None or isinstance(found, dict):
        return found
    raise NotJSON(f"'{path}' is {shown(found)}, not a JSON object; restore it or remove it.")


def sync_directory(directory: Path) -> None:
    """fsync `directory`, so that renames in it are durable, on file systems that support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` and rename it to `target` if the block succeeds.

    An existing target is replaced. Leftovers of a killed attempt are removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_directory(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(target.parent)
