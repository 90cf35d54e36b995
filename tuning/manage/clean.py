"""What stands under TUNING_HOME and nothing needs, and its removal.

Never a model, a sweetspot, a plan, a record, a result or an answer; never what a run that is not
done would resume from; nothing in a directory that somebody holds. What was found is looked at once
more under the lock of its directory before it goes: a run may have been started since.

Orphans are whole runs that no experiment names. They are results, so they go on request only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.runs import manifest
from tuning.runs.atomic import read_json
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.lock import Lock
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory

HOUR, DAY = 3_600.0, 86_400.0
"""Seconds."""
TEMPORARY = ".*.tmp"
_ASIDE = ".gone.tmp"
"""Ends the names of things whose removal has begun."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that may go."""

    path: Path
    bytes: int
    why: str
    directory: Path
    """Whose lock guards it; `path` itself where a whole run goes."""


def removable(home: Path, live: set[str]) -> list[Leftover]:
    """What can go without the loss of a result, a parent, or a place to resume from.

    `live` are the names of the snapshots of the code that a job in the queue runs.
    """
    found: list[Leftover] = []
    for directory in _folders(home):
        if Lock(directory).holder() is None:
            found += _of_run(directory)
    return [*found, *_of_others(home), *_snapshots(home, live)]


def orphans(home: Path) -> list[Leftover]:
    """The runs and evaluations under `home` that no experiment's plan names, that no run under
    models/ stands on, and that nobody holds.

    Raises UserError where a plan cannot be read: what it needs is not known then.
    """
    needed = _needed(home)
    return [
        _leftover(path, f"no experiment names this {config.get('kind', 'run')} run", path)
        for path in _folders(home)
        if (config := _config(path)) and config["hash"] not in needed
        if Lock(path).holder() is None
    ]


def remove(leftovers: Iterable[Leftover]) -> int:
    """Remove what `removable` and `orphans` found; how many bytes that freed.

    What has vanished is passed over; what is held by now, needed again, or not to be removed is
    kept, and said so.
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
    """What may go of a run directory that nobody else holds."""
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
            found.append(_leftover(path, "a checkpoint of a run that is done", directory))
        elif not manifest.is_whole(path):
            found.append(_leftover(path, "a checkpoint that was cut short", directory))
    return found


def _of_others(home: Path) -> Iterator[Leftover]:
    """Half-written files and folders beside the run directories and in those of experiments.

    Not all who write there hold a lock, so what is younger than an hour may still become whole.
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
    """Copies of the code that no job runs; a job that is being submitted has a fresh one."""
    root = home / "snapshots"
    for path in sorted(root.glob("[!.]*")):
        if path.name not in live and path.is_dir() and _age(path) > DAY:
            yield _leftover(path, "a copy of the code that no job runs", root)


def _may_go(left: Leftover) -> bool:
    """Whether that still holds, asked under the lock."""
    if left.path == left.directory:
        config = _config(left.path)
        return config is not None and config["hash"] not in _needed(_home_of(left.path))
    if left.directory.name == "snapshots":
        return _age(left.path) > (HOUR if left.path.name.startswith(".") else DAY)
    if left.path.match(TEMPORARY):
        return True
    return left.path in [found.path for found in _of_run(left.directory)]


def _folders(home: Path) -> Iterator[Path]:
    """The directories of runs and evaluations: ours, or claimed and not yet named."""
    for path in sorted([*home.glob("models/[!.]*"), *home.glob("outputs/*/[!.]*")]):
        if path.parent == home / "outputs" / "reports" or path.is_symlink() or not path.is_dir():
            continue
        named = (path / "config.json").exists()
        if _config(path) is not None or (not named and (path / ".lock").exists()):
            yield path


def _config(directory: Path) -> dict[str, Any] | None:
    """config.json of a run of ours; None for a folder that somebody else put there."""
    try:
        found = read_json(directory / "config.json")
    except (ValueError, OSError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("hash"), str) else None


def _needed(home: Path) -> set[str]:
    """The hashes of the runs that a plan names or that a run under models/ stands on."""
    found: set[Any] = set()
    for path in home.glob("outputs/reports/*/plan.json"):
        try:
            plan = read_json(path)
            for stage in [] if plan is None else plan["stages"]:
                found |= {stage["hash"], stage.get("evaluation_hash")}
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            raise UserError(
                f"'{path}' cannot be read, so that it is not known which runs it needs; "
                "put it right or remove its folder."
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
    """Rename something while its directory is held: nobody takes it for whole, or for their own,
    however its deletion ends.
    """
    if path.name.endswith(_ASIDE):
        return path
    aside = path.with_name(f".{path.name}{_ASIDE}")
    _delete(aside)
    return path.rename(aside)


def _delete(path: Path) -> None:
    """Delete a file or folder, of which another may delete parts at the same time."""
    if path.is_dir() and not path.is_symlink():
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
            if not path.exists():
                return
    else:
        path.unlink(missing_ok=True)


def _drop_lock(directory: Path) -> None:
    """Remove the folder that only the lock of a removed run is left in, unless it is claimed."""
    with contextlib.suppress(OSError), (directory / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if [path.name for path in directory.iterdir()] == [".lock"]:
            (directory / ".lock").unlink()
            directory.rmdir()


def _leftover(path: Path, why: str, directory: Path) -> Leftover:
    return Leftover(path=path, bytes=_bytes(path), why=why, directory=directory)


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; links are not followed."""
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
    """Seconds since something was last written; 0 where it has vanished."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
