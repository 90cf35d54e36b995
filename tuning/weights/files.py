"""Whether the files of a model are whole, looked at before anything heavy is imported: pointers of
git-lfs, downloads that were cut, shards that are missing. No torch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from tuning.runs.atomic import read_object
from tuning.runs.content import weights_hash
from tuning.runs.errors import UserError
from tuning.runs.json_text import NotJSON, parse_object
from tuning.weights.hub import wanted

_POINTER = b"version https://git-lfs"
_OBJECTS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Files that hold a JSON object, and so do those that list shards."""
_FORMATS = {".safetensors", ".bin"}
_PARSED = 1 << 20
"""Bytes up to which such a file is parsed; of a larger one the ends are looked at."""
_HEADER = 100_000_000
"""Most bytes of a safetensors header."""


def checked_hash(folder: Path) -> str:
    """The hash of a local model's files; UserError unless they are whole."""
    if (folder / "config.json").exists():
        require_whole(folder)
    return weights_hash(folder)


def require_whole(folder: Path, *, partial: bool = False) -> None:
    """Raise UserError for a file of a model or an adapter that is not what it is called.

    `partial`: files may be missing, since a download may still go on.
    """
    for file in _loaded(folder):
        try:
            why = _damage(file)
        except NotJSON as error:
            why = str(error).replace(f"'{file}' ", "").rstrip(".")
        if why:
            raise _cannot(folder, f"{file.name} {why}")
        if file.name.endswith(".index.json") and not partial:
            _require_shards(folder, file)


def _loaded(folder: Path) -> list[Path]:
    """The files that a model or an adapter is loaded from; weights in one format, as `wanted()`
    chooses it, and not those of others beside them.
    """
    files = sorted(folder.iterdir())
    chosen = set(wanted(file.name for file in files))
    formats = {Path(name).suffix for name in chosen} & _FORMATS
    return [file for file in files if _is_loaded(file, chosen, formats)]


def _is_loaded(file: Path, chosen: set[str], formats: set[str]) -> bool:
    if file.suffix in _FORMATS:
        return file.name in chosen or file.name.startswith("adapter_model.")
    if file.name.endswith(".index.json"):
        return not formats or Path(file.name.removesuffix(".index.json")).suffix in formats
    return True


def _require_shards(folder: Path, index: Path) -> None:
    shards = (read_object(index) or {}).get("weight_map")
    if not isinstance(shards, dict):
        raise _cannot(folder, f"{index.name} has no weight_map")
    for name in sorted({str(shard) for shard in shards.values()}):
        if not (folder / name).is_file():
            raise _cannot(folder, f"{name} is missing")


def _cannot(folder: Path, why: str) -> UserError:
    return UserError(f"'{folder}' cannot be loaded: {why}. Download or copy it again.")


def _damage(file: Path) -> str | None:
    """Why a file cannot be read as what its name says; None if it can, or is no file of a model.

    NotJSON for JSON that is damaged.
    """
    is_object = file.name in _OBJECTS or file.name.endswith(".index.json")
    if not is_object and file.suffix not in (".safetensors", ".bin", ".model"):
        return None
    if not file.is_file():
        return "is a link to nothing" if file.is_symlink() else "is not a file"
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(len(_POINTER))
    if start == _POINTER:
        return "is a pointer of git-lfs, not the file itself (git lfs pull fetches it)"
    if not size:
        return "is empty"
    if file.suffix == ".safetensors":
        return _cut_safetensors(file, size)
    if is_object:
        return _damaged_object(file, size)
    return "is cut" if start[:2] == b"PK" and not zipfile.is_zipfile(file) else None


def _damaged_object(file: Path, size: int) -> str | None:
    if size <= _PARSED:
        read_object(file)
        return None
    with file.open("rb") as opened:
        start = opened.read(64)
        opened.seek(size - 64)
        end = opened.read()
    whole = start.lstrip().startswith(b"{") and end.rstrip().endswith(b"}")
    return None if whole else "is cut"


def _cut_safetensors(file: Path, size: int) -> str | None:
    """By its header: 8 bytes with its length n, n bytes of JSON, then the tensors.

    Source: github.com/huggingface/safetensors, "Format".
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(_HEADER, size - 8):
            return "is cut, or no safetensors file"
        header = opened.read(length)
    try:
        tensors = parse_object(header.decode(), file.name)
        tensors.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        expected = 8 + length + int(end)
    except (NotJSON, UnicodeDecodeError, KeyError, TypeError, IndexError, ValueError):
        return "has a damaged header"
    if size == expected:
        return None
    how = "is cut" if size < expected else "is longer than its header says"
    return f"{how}: it has {size:,} of {expected:,} bytes"
