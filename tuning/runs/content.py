"""Hashes of file contents, independent of paths.

Only the size, the first and the last MiB of a file are hashed, so that large files stay cheap.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tuning.runs.errors import UserError

SAMPLE = 1 << 20


def file_hash(path: Path) -> str:
    """The hash of one file; UserError if it does not exist."""
    if not path.is_file():
        raise UserError(f"there is no file '{path}'.")
    total = hashlib.sha256()
    _add(total, path)
    return total.hexdigest()


_HASHED = (".json", ".safetensors", ".bin", ".model", ".jinja")


def weights_hash(folder: Path) -> str:
    """The hash of a model folder: of the names and contents of its files, not of its path.

    Raises UserError if the folder has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"'{folder}' holds no model: it has no config.json.")
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in _HASHED and file.is_file():
            total.update(f"{file.name}:".encode())
            _add(total, file)
    return total.hexdigest()


def _add(total: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    total.update(f"{size}:".encode())
    with file.open("rb") as handle:
        total.update(handle.read(SAMPLE))
        handle.seek(max(0, size - SAMPLE))
        total.update(handle.read(SAMPLE))
