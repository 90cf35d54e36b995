"""Rows as somebody published them: of a dataset of the hub, or of local files, through `datasets`.

A source is written `ORG/NAME[@REVISION][/CONFIG][:SPLIT]`, or is the path of a .jsonl, .json,
.parquet or .csv file.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.runs.content import file_hash
from tuning.runs.errors import UserError

_HUB = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?(?::(?P<split>\w+))?",
    re.ASCII,
)
_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The rows of a source, and which version of it they are."""

    source: str
    version: str
    """The commit on the hub, or the digest of the file."""
    rows: Any
    """A `datasets.Dataset`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(its place as messages name it, row) of each row."""
        name = Path(self.source).name if is_file(self.source) else self.source
        return ((f"{name}:{number}", dict(row)) for number, row in enumerate(self.rows, 1))


def is_file(source: str) -> bool:
    """Whether a source is meant as a local file."""
    return Path(source).suffix in _FORMATS


def read(source: str) -> Raw:
    """The rows of a source; UserError for one that cannot be had."""
    if is_file(source):
        return _local(site.expanded(source))
    asked = _HUB.fullmatch(source)
    if asked is None:
        raise UserError(
            f"source '{source}' is neither a file ({', '.join(_FORMATS)}) nor an id of the hub "
            "(ORG/NAME, with @REVISION, /CONFIG and :SPLIT where they are needed)."
        )
    return _of_hub(source, **asked.groupdict())


def _local(path: Path) -> Raw:
    from datasets import load_dataset

    if not path.is_file():
        raise UserError(f"'{path}' cannot be read: there is no such file.")
    if not path.stat().st_size:
        raise UserError(f"'{path}' is empty.")
    if "::" in str(path):
        raise UserError(f"'{path}' has '::' in its name, which means an archive; rename it.")
    try:
        files = glob.escape(str(path))
        rows = load_dataset(_FORMATS[path.suffix], data_files=files, split="train")
    except Exception as error:  # of many kinds, one for each format
        raise UserError(f"'{path}' cannot be read: {_first_line(error)}") from None
    return Raw(source=str(path), version=file_hash(path), rows=rows)


def _of_hub(
    source: str, id: str, revision: str | None, config: str | None, split: str | None
) -> Raw:
    from datasets import load_dataset

    try:
        rows = load_dataset(id, config, split=split or "train", revision=revision)
    except Exception as error:  # of many kinds: the network, the hub, the files
        raise UserError(
            f"dataset '{id}' of the hub cannot be fetched ({_first_line(error)}): run this where "
            "the hub can be reached, or give a local file as --source."
        ) from None
    return Raw(source=source, version=_commit(rows) or revision or "unknown", rows=rows)


def _commit(rows: Any) -> str | None:
    """The commit that the files of a dataset of the hub were read at."""
    found = re.search(r"@([0-9a-f]{40})", " ".join((rows.info.download_checksums or {}).keys()))
    return found[1] if found else None


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
