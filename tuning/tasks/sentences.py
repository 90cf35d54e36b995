"""The data with which NLTK splits English text into sentences, as the official IFEval program does.

NLTK would fetch them from a server of its own whenever they are missing, or split otherwise where
they are empty. Here they come out of a wheel of the package index, once, into TUNING_HOME.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tuning import config as site
from tuning.runs.atomic import whole_directory
from tuning.runs.errors import UserError

WHEEL = "llama-index-core==0.14.25"
"""A package that carries the data."""
_INSIDE = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"
DIGESTS = {
    "abbrev_types.txt": "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779",
    "collocations.tab": "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf",
    "ortho_context.tab": "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c",
    "sent_starters.txt": "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac",
}
"""SHA-256 of each file; they are those of NLTK's own punkt_tab."""


def folder() -> Path:
    """Where the data are kept."""
    return site.home() / "data" / "nltk"


def are_here() -> bool:
    """Whether all files are there and right."""
    english = folder() / "tokenizers" / "punkt_tab" / "english"
    return all(_digest(english / name) == digest for name, digest in DIGESTS.items())


def require() -> None:
    """Let NLTK find the data, which are fetched where they are missing.

    Raises UserError where the package index cannot be reached.
    """
    import nltk

    fetch()
    if str(folder()) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder()))


def fetch() -> None:
    """Download the wheel and keep the data, unless they are here; UserError where that fails. Of
    several processes that need them, one fetches.
    """
    if are_here():
        return
    folder().parent.mkdir(parents=True, exist_ok=True)
    with (folder().parent / ".nltk.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not are_here():
            _fetch()


def _fetch() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        done = subprocess.run(
            [*words, temporary, WHEEL], capture_output=True, text=True, check=False
        )
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
            raise UserError(
                f"the data for splitting sentences cannot be fetched ({WHEEL}: {reason}); run "
                f"`tuning prefetch` where the package index is reachable, and copy {folder()}."
            )
        with whole_directory(folder()) as made, zipfile.ZipFile(wheels[0]) as wheel:
            english = made / "tokenizers" / "punkt_tab" / "english"
            english.mkdir(parents=True)
            for name in DIGESTS:
                (english / name).write_bytes(wheel.read(_INSIDE + name))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
