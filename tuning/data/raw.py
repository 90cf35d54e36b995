"""Rows as somebody published them: of a dataset of the hub, or of local files, through `datasets`.

A source is written `ORG/NAME[@REVISION][/CONFIG][:SPLIT]`; or is the path of a .jsonl, .json,
.parquet or .csv file; or that of a folder of such files, or one that `datasets` saved, which begins
with `.`, `/` or `~` and may end with `:SPLIT`.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.runs import hub
from tuning.runs.errors import UserError, choose

FORMS = (
    f"a file ({', '.join(site.DATA_FILES)}), a folder (./NAME or /NAME, with :SPLIT where it is "
    "needed), or an id of the hub (ORG/NAME, with @REVISION, /CONFIG and :SPLIT where they are "
    "needed)"
)
_HUB = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?(?::(?P<split>\w+))?",
    re.ASCII,
)
_FOLDER = re.compile(r"(?P<path>[./~].*?)(?::(?P<split>\w+))?", re.ASCII | re.DOTALL)
_SAVED = ("dataset_dict.json", "state.json")
"""Of which `datasets` leaves one in a folder that it saves."""
_PAGES = "datasets/"
"""What stands before an id in the address of its page."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The rows of a source, and which version of it they are."""

    source: str
    version: str
    """The commit on the hub, or the digest of the file or of a folder's files."""
    rows: Any
    """A `datasets.Dataset`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(its place as messages name it, row) of each row."""
        name = Path(self.source).name if is_local(self.source) else self.source
        return ((f"{name}:{number}", dict(row)) for number, row in enumerate(self.rows, 1))


def is_local(source: str) -> bool:
    """Whether a source is meant as a local file or folder."""
    return source.startswith((".", "/", "~")) or Path(source).suffix in site.DATA_FILES


def located(source: str, folder: Path | None = None) -> tuple[Path, str | None]:
    """The path of a local source and its split; a relative path starts at `folder`, or at the
    working directory.
    """
    path, split = source, None
    folders = _FOLDER.fullmatch(source)
    if folders and Path(source).suffix not in site.DATA_FILES:
        path, split = folders["path"], folders["split"]
    relative = folder is not None and not path.startswith("~")
    return site.expanded(str(folder / path) if folder and relative else path), split


def absolute(source: str) -> str:
    """A source that means the same in any working directory."""
    if not is_local(source):
        return source
    path, split = located(source)
    return f"{path}:{split}" if split else str(path)


def local_version(source: str, folder: Path | None = None) -> str | None:
    """The digest of a local source as it is now; None where it is gone."""
    path, _ = located(source, folder)
    return _digest(path) if path.exists() else None


def read(source: str, folder: Path | None = None) -> Raw:
    """The rows of a source; UserError for one that cannot be had."""
    if is_local(source):
        path, split = located(source, folder)
        rows = _of_file(path) if path.suffix in site.DATA_FILES else _of_folder(path, split)
        return Raw(source=source, version=_digest(path), rows=rows)
    asked = _HUB.fullmatch(source)
    if asked is None or not hub.is_id(asked["id"]):
        raise UserError(f"'{source}' is no source; it must be {FORMS}.")
    return _of_hub(source, **asked.groupdict())


def _of_file(path: Path) -> Any:
    from datasets import load_dataset

    if not path.is_file():
        raise UserError(f"'{path}' cannot be read: there is no such file.")
    if not path.stat().st_size:
        raise UserError(f"'{path}' is empty.")
    if "::" in str(path):
        raise UserError(f"'{path}' has '::' in its name, which means an archive; rename it.")
    try:
        files = glob.escape(str(path))
        return load_dataset(site.DATA_FILES[path.suffix], data_files=files, split="train")
    except Exception as error:  # of many kinds, one for each format
        raise UserError(f"'{path}' cannot be read: {_reason(error)}") from None


def _of_folder(path: Path, split: str | None) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if not path.is_dir():
        raise UserError(f"'{path}' cannot be read: there is no such folder, nor is it {FORMS}.")
    try:
        if not any((path / name).is_file() for name in _SAVED):
            _require_data(path)
            return load_dataset(str(path), split=split or "train")
        saved = load_from_disk(str(path))
    except UserError:
        raise
    except Exception as error:  # of many kinds, one for each format
        raise UserError(f"'{path}' cannot be read: {_reason(error)}") from None
    if isinstance(saved, DatasetDict):
        return saved[choose(f"split of '{path}':", split or "train", map(str, saved))]
    if split is not None:
        raise UserError(f"'{path}' has no splits; leave ':{split}' out.")
    return saved


def _require_data(folder: Path) -> None:
    """Raise UserError for a folder without data files: `datasets` would look for them at any depth,
    for minutes in a home folder.
    """
    some = (*folder.glob("*"), *folder.glob("*/*"))
    if not any(path.suffix in site.DATA_FILES for path in some):
        raise UserError(
            f"'{folder}' has no data files ({', '.join(site.DATA_FILES)}), nor was it saved by "
            "datasets; name a folder of such files."
        )


def _of_hub(
    source: str, id: str, revision: str | None, config: str | None, split: str | None
) -> Raw:
    """Rows of the hub. Its first answer, to a single question, names the commit: a hub that is out
    of reach is known at once, where `datasets` would ask it for half a minute.
    """
    from huggingface_hub import HfApi

    explained = hub.explained(
        id, page=_PAGES, otherwise=", or name a local file instead (./NAME for a folder)"
    )
    with explained:
        commit = HfApi().dataset_info(id, revision=revision, timeout=hub.PATIENCE).sha
    try:
        rows = _rows_at(id, commit, config, split or "train")
    except UserError:
        raise
    except Exception as error:  # of many kinds: the network, the hub, the files
        with hub.explained(id, page=_PAGES):
            _raise_what_the_hub_said(error)
        raise UserError(f"dataset '{id}' of the hub cannot be read: {_reason(error)}") from None
    return Raw(source=source, version=commit or revision or "unknown", rows=rows)


def _rows_at(id: str, commit: str | None, config: str | None, split: str) -> Any:
    """The rows of a split at a commit. Where the hub refuses its files, `datasets` takes any other
    commit that it once read; that is not what was asked for.
    """
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = load_dataset_builder(id, config, revision=commit)
    except DatasetNotFoundError:
        builder = None
    if builder is None or isinstance(builder, Cache):
        raise UserError(
            f"the files of '{id}' are refused by the hub; if it is gated, "
            f"{hub.ask_for_access(_PAGES + id)}; or try again later."
        )
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _raise_what_the_hub_said(error: BaseException | None) -> None:
    """Raise the refusal of the hub, or the failure of the network, that an error comes from. A file
    that is not there is none: `datasets` asks for some that few repositories have.
    """
    from httpx import TransportError
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    while error is not None:
        refused = isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError)
        if refused or isinstance(error, TransportError):
            raise error
        error = error.__cause__ or error.__context__


def _digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of a folder's files; a file that was not
    touched since is read once a process.
    """
    if path.is_dir():
        total = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                total.update(f"{file.relative_to(path)}:{_digest(file)}\n".encode())
        return total.hexdigest()
    about = path.stat()
    return _file_digest(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=1024)
def _file_digest(path: Path, *about: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """What an error comes from, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
