"""Manifests of checkpoints, which list their files and sizes and show whether they are whole.

The manifest is written last, so an interrupted checkpoint has none, or one that does not match.
Only directories named `checkpoint-{step}` are checkpoints to resume from; others are never deleted.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tuning.runs.atomic import read_json, sync_directory, write_json

MANIFEST = "manifest.json"
KEPT = 2
"""Whole checkpoints that a run keeps; there is one more while it is written."""
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_directory(run_dir: Path, step: int) -> Path:
    """The path of the checkpoint of `step`."""
    return run_dir / f"checkpoint-{step}"


def write_manifest(directory: Path) -> None:
    """Complete a checkpoint whose files are all written: fsync them, then list them."""
    sizes = {}
    for file in sorted(_files(directory)):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[str(file.relative_to(directory))] = file.stat().st_size
    for folder in {file.parent for file in _files(directory)}:
        sync_directory(folder)
    write_json(directory / MANIFEST, {"files": sizes})


def is_whole(directory: Path) -> bool:
    """Whether the manifest exists and every file in it has the recorded size."""
    try:
        manifest = read_json(directory / MANIFEST)
        sizes = dict(manifest["files"]) if manifest else None
    except (ValueError, KeyError, TypeError, OSError):
        return False
    if sizes is None:
        return False
    return all(_size(directory / name) == size for name, size in sizes.items())


def checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every `checkpoint-{step}`, whole or not, oldest first."""
    if not run_dir.is_dir():
        return []
    found = [(match, path) for path in run_dir.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found if path.is_dir())


def newest_whole(run_dir: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None; incomplete ones are skipped."""
    return next((path for _, path in reversed(checkpoints(run_dir)) if is_whole(path)), None)


def prune(run_dir: Path, keep: int = KEPT) -> None:
    """Delete all checkpoints older than the newest `keep` whole ones."""
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
    whole = [step for step, path in checkpoints(run_dir) if is_whole(path)]
    if len(whole) < keep:
        return
    for step, path in checkpoints(run_dir):
        if step < whole[-keep]:
            shutil.rmtree(path)


def _files(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and path.relative_to(directory) != Path(MANIFEST)
    ]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def drop(run_dir: Path) -> None:
    """Delete every `checkpoint-{step}`: a finished run has nothing to resume."""
    for _, path in checkpoints(run_dir):
        shutil.rmtree(path, ignore_errors=True)
