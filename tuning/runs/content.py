"""What files hold, as hashes that do not depend on where they lie.

Large files are told by their size, their beginning and their end.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tuning.runs.errors import UserError

SAMPLE = 1 << 20


def file_hash(path: Path) -> str:
    """Of one file; UserError where there is none."""
    if not path.is_file():
        raise UserError(f"there is no file '{path}'.")
    total = hashlib.sha256()
    _add(total, path)
    return total.hexdigest()


def weights_hash(folder: Path) -> str:
    """Over the names and contents of a model's files, so that moving them changes nothing.

    Raises UserError where the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"'{folder}' holds no model: it has no config.json.")
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja"):
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
