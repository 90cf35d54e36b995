"""The code that jobs run: the tree as it was when they were submitted.

A job may start hours after it was submitted, when the checkout has been edited. So a submission
copies the tracked files, with uncommitted changes, to TUNING_HOME/snapshots/{digest}; equal trees
share one copy. PYTHONPATH puts it before any installed package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tuning import config as site
from tuning.runs import atomic, provenance
from tuning.runs.lock import flock
from tuning.runs.log import logger

DIGITS = 16
FOLDERS = ("tuning", "slurm", "configs")
"""What is copied if the code is not a git checkout."""
LEFT_OUT = (
    "__pycache__", "cache", "datasets", "models", "nltk", "outputs", "snapshots", "tokens"
)  # fmt: skip


def take() -> Path:
    """Copy the code as it is now; the folder of the copy. Where this code is such a copy itself, in
    a job that submits, it is that.
    """
    root = site.CHECKOUT
    if root.parent == site.home() / "snapshots":
        os.utime(root)
        return root
    tracked, untracked = _tracked(root)
    files = tracked if tracked is not None else _found(root)
    if forgotten := [name for name in untracked if name.endswith((".py", ".jinja", ".sbatch"))]:
        logger.warning(f"not tracked by git, so not in the snapshot: {', '.join(forgotten)}")
    found = hashlib.sha256()
    for name in files:
        found.update(f"\0{name}\0".encode() + (root / name).read_bytes())
    target = site.home() / "snapshots" / found.hexdigest()[:DIGITS]
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("a") as lock:
        flock(lock)
        if target.exists():
            os.utime(target)
        else:
            _copy(root, files, target)
    return target


def _copy(root: Path, files: list[str], target: Path) -> None:
    with atomic.whole_directory(target) as folder:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
        revision = provenance.revision() or "unknown"
        (folder / provenance.REVISION_FILE).write_text(revision + "\n", encoding="utf-8")


def _tracked(root: Path) -> tuple[list[str] | None, list[str]]:
    """(tracked files that exist, untracked ones); (None, []) if `root` is not a git checkout."""
    listed = _git(root, "ls-files", "-z")
    if listed is None or not (root / ".git").exists():
        return None, []
    there = sorted({name for name in listed if (root / name).is_file()})
    return there, _git(root, "ls-files", "-z", "--others", "--exclude-standard", *FOLDERS) or []


def _git(root: Path, *words: str) -> list[str] | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return list(filter(None, done.stdout.split("\0"))) if done.returncode == 0 else None


def _found(root: Path) -> list[str]:
    """The files of the package, without the help of git."""
    return sorted(
        str(path.relative_to(root))
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and not set(path.relative_to(root).parts) & set(LEFT_OUT)
    )
