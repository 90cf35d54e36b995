"""Models of the hub in the Hugging Face cache: where one lies, and which of its files it lacks. No
network.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from tuning.runs.atomic import read_object

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A model has one of these."""
_SMALL = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_WEIGHTS = (
    ("model.safetensors", re.compile(r"model(-\d+-of-\d+)?\.safetensors")),
    ("pytorch_model.bin", re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")),
)
"""The single file of each format and what its shards are called, in the order of preference."""


def snapshot_folder(hub: str) -> Path | None:
    """Where the cache has the main revision of a model, whole or not; None where it has none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError

    try:
        return Path(snapshot_download(hub, local_files_only=True))
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except (OSError, HFValidationError):
        return None


def lacking(hub: str) -> list[str]:
    """The files that from_pretrained needs of a hub model and the cache does not have."""
    folder = snapshot_folder(hub)
    if folder is None:
        return ["all files"]
    left = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        left.append("a tokenizer")
    return left + _lacking_weights(folder) or _lacking_of_listing(hub, folder)


def wanted(files: Iterable[str]) -> list[str]:
    """Of the files of a repository, those that a model is loaded from: configs, the tokenizer, and
    weights in one format, safetensors where there are any.
    """
    names = sorted(files)
    small = [n for n in names if n.endswith(_SMALL) and "/" not in n]
    small += [n for n in names if n.startswith("additional_chat_templates/")]
    weights = ([n for n in names if pattern.fullmatch(n)] for _, pattern in _WEIGHTS)
    return small + next(filter(None, weights), [])


def _lacking_weights(folder: Path) -> list[str]:
    """The weight files that are not there: one file, or the shards that an index names."""
    for single, _ in _WEIGHTS:
        if (folder / single).is_file():
            return []
        with contextlib.suppress(ValueError, AttributeError):
            index = read_object(folder / f"{single}.index.json") or {}
            shards = sorted(set(index.get("weight_map", {}).values()))
            if shards:
                return [name for name in shards if not (folder / name).is_file()]
    return ["model.safetensors"]


def _lacking_of_listing(hub: str, folder: Path) -> list[str]:
    """Files of an interrupted download, by the listing that the cache kept of it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        listed = [file.path for file in get_cached_repo_tree(hub, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        return []
    return [name for name in wanted(listed) if not (folder / name).is_file()]
