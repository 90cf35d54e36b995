"""Finds and removes files under TUNING_HOME that nothing needs.

Never a model, a sweetspot, a plan, a record, a result or a response; never a checkpoint that an
unfinished run would resume from; nothing in a directory that another process holds. Before removal,
each is checked again under the lock of its directory: a run may have been started since.

Orphans are whole runs that are in no experiment. They are results, so they are removed on request
only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.evaluation.before_after import LikelihoodRunConfig
from tuning.flags import restore
from tuning.runs import manifest
from tuning.runs.atomic import read_json
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.identity import FORMAT
from tuning.runs.lock import Lock, drop_if_empty, flock
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory
from tuning.weights.config import ModelLoadConfig

HOUR, DAY = 3_600.0, 86_400.0
"""Seconds."""
TEMPORARY = ".*.tmp"
_ASIDE = ".gone.tmp"
"""Suffix of files and folders whose removal has begun."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file or folder that may be removed."""

    path: Path
    bytes: int
    why: str
    directory: Path
    """The directory whose lock guards it; `path` itself if it is a whole run."""


def removable(home: Path, live: set[str]) -> list[Leftover]:
    """What can be removed without losing a result, a parent, or a checkpoint to resume from.

    `live`: the names of the code snapshots that queued or running jobs use.
    """
    found: list[Leftover] = []
    for directory in _folders(home):
        if Lock(directory).holder() is None:
            found += _of_run(directory)
    return [*found, *_of_others(home), *_snapshots(home, live), *_merged(home)]


def orphans(home: Path) -> list[Leftover]:
    """The runs and evaluations under `home` that are in no plan, that are not the parent or base of
    a run under models/, and that no process holds. Likelihoods are no orphans where their model is
    none.

    Raises UserError if a plan cannot be read, since it is unknown then what it needs.
    """
    needed = _needed(home)
    return [
        _leftover(path, f"no experiment has this {config.get('kind', 'run')} run", path)
        for path in _folders(home)
        if (config := _config(path)) and not _serves(config, needed)
        if Lock(path).holder() is None
    ]


def remove(leftovers: Iterable[Leftover]) -> int:
    """Remove what `removable` and `orphans` found; the number of bytes freed.

    What no longer exists is ignored; what is held or needed again by now, or cannot be removed, is
    kept with a message.
    """
    freed = 0
    for left in leftovers:
        if not os.path.lexists(left.path):
            continue
        try:
            going = None
            with Lock(left.directory).holding(wait=False):
                if _may_go(left):
                    going = _set_aside(left.path)
            if going is None:
                logger.info(f"kept {left.path}: it is needed again")
                continue
            _delete(going)
            freed += left.bytes
        except FileNotFoundError:
            continue
        except StageFailed as error:
            logger.info(f"kept {left.path}: {error}")
        except OSError as error:
            logger.info(f"kept {left.path}: {error.strerror or error}")
        if left.path == left.directory:
            _drop_lock(left.directory)
    return freed


def _of_run(directory: Path) -> list[Leftover]:
    """What may be removed from a run directory that no other process holds."""
    found = [
        _leftover(path, "half-written", directory) for path in sorted(directory.glob(TEMPORARY))
    ]
    if _config(directory) is None:
        return found
    try:
        done = RunDirectory(directory).done("train") and (directory / "model").is_dir()
    except ValueError:
        return found
    for _, path in manifest.checkpoints(directory):
        if done:
            found.append(_leftover(path, "checkpoint of a finished run", directory))
        elif not manifest.is_whole(path):
            found.append(_leftover(path, "incomplete checkpoint", directory))
    return found


def _of_others(home: Path) -> Iterator[Leftover]:
    """Half-written files and folders beside run directories and in those of experiments.

    Not every writer holds a lock there, so one younger than an hour may still be completed.
    """
    roots = [home / "models", *home.glob("outputs/*"), home / "snapshots"]
    for root in (root for root in roots if root.name != "reports"):
        for path in sorted(root.glob(TEMPORARY)):
            if _age(path) > HOUR:
                yield _leftover(path, "half-written", root)
    for experiment in sorted(home.glob("outputs/reports/*")):
        for path in sorted(experiment.rglob(TEMPORARY)):
            if _age(path) > HOUR:
                yield _leftover(path, "half-written", experiment)


def _snapshots(home: Path, live: set[str]) -> Iterator[Leftover]:
    """Code snapshots that no job uses; that of a submission in progress is less than a day old."""
    root = home / "snapshots"
    for path in sorted(root.glob("[!.]*")):
        if path.name not in live and path.is_dir() and _age(path) > DAY:
            yield _leftover(path, "code snapshot that no job uses", root)


def _merged(home: Path) -> Iterator[Leftover]:
    """Adapters that were merged for an inference engine, a day after the last that used them."""
    for folder in sorted((home / "cache" / "merged").glob("[!.]*")):
        for path in sorted([folder / "model", *folder.glob(TEMPORARY)]):
            if path.is_dir() and _age(path) > (HOUR if path.match(TEMPORARY) else DAY):
                yield _leftover(path, "merged weights, made again when needed", folder)


def _may_go(left: Leftover) -> bool:
    """Whether it may still be removed; the caller holds the lock."""
    if left.path == left.directory:
        config = _config(left.path)
        return config is not None and not _serves(config, _needed(_home_of(left.path)))
    if left.directory.name == "snapshots" or left.directory.parent.name == "merged":
        return _age(left.path) > (HOUR if left.path.name.startswith(".") else DAY)
    if left.path.match(TEMPORARY):
        return True
    return left.path in [found.path for found in _of_run(left.directory)]


def _folders(home: Path) -> Iterator[Path]:
    """The directories of runs and evaluations: with a config.json of ours, or just claimed."""
    for path in sorted([*home.glob("models/[!.]*"), *home.glob("outputs/*/[!.]*")]):
        if path.parent == home / "outputs" / "reports" or path.is_symlink() or not path.is_dir():
            continue
        named = (path / "config.json").exists()
        if _config(path) is not None or (not named and (path / ".lock").exists()):
            yield path


def _config(directory: Path) -> dict[str, Any] | None:
    """config.json of a run of this version of the code; None for any other folder."""
    try:
        found = read_json(directory / "config.json")
    except (ValueError, OSError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    return found if isinstance(found.get("hash"), str) else None


def _serves(config: Mapping[str, Any], needed: set[str]) -> bool:
    """Whether a run is needed; likelihoods are in no plan, and are by their model's hash."""
    if config.get("kind") == LikelihoodRunConfig.kind:
        return (config.get("parent") or {}).get("hash") in needed
    return config["hash"] in needed


def _needed(home: Path) -> set[str]:
    """The hashes of the runs in plans, of the bases that those measure, and of parents and bases of
    the runs under models/.
    """
    found: set[Any] = set()
    for path in home.glob("outputs/reports/*/plan.json"):
        try:
            plan = read_json(path)
            for stage in [] if plan is None else plan["stages"]:
                found |= {stage["hash"], stage.get("evaluation_hash")}
                if stage.get("before_after"):
                    base = restore(ModelLoadConfig, stage["run"]["model"])
                    found.add(base.identity_hash)
        except (UserError, ValueError, KeyError, TypeError, AttributeError, OSError):
            raise UserError(
                f"'{path}' cannot be read, so it is unknown which runs it needs; repair it or "
                "remove its folder."
            ) from None
    for path in home.glob("models/[!.]*"):
        config = _config(path) or {}
        model = (config.get("settings") or {}).get("model")
        found.add((config.get("parent") or {}).get("hash"))
        found.add(model.get("base_hash") if isinstance(model, dict) else None)
    return found - {None}


def _home_of(run: Path) -> Path:
    """TUNING_HOME above models/{run} or outputs/{task}/{run}."""
    return run.parents[1] if run.parent.name == "models" else run.parents[2]


def _set_aside(path: Path) -> Path:
    """Rename a file or folder while its directory is held, so that no other process uses it, even
    if its deletion is interrupted.
    """
    if path.name.endswith(_ASIDE):
        return path
    aside = path.with_name(f".{path.name}{_ASIDE}")
    _delete(aside)
    return path.rename(aside)


def _delete(path: Path) -> None:
    """Delete a file or folder; another process may be deleting parts of it at the same time."""
    if path.is_dir() and not path.is_symlink():
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
            if not path.exists():
                return
    else:
        path.unlink(missing_ok=True)


def _drop_lock(directory: Path) -> None:
    """Remove the folder of a removed run, of which only the lock is left, unless it is claimed."""
    with contextlib.suppress(OSError), (directory / ".lock").open("r+") as file:
        flock(file)
        drop_if_empty(directory)


def _leftover(path: Path, why: str, directory: Path) -> Leftover:
    return Leftover(path=path, bytes=_bytes(path), why=why, directory=directory)


def _bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder; links are not followed."""
    total = 0
    with contextlib.suppress(OSError):
        total = path.lstat().st_size if not path.is_dir() or path.is_symlink() else 0
    if path.is_symlink():
        return total
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _age(path: Path) -> float:
    """Seconds since the last modification; 0 if it no longer exists."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
