"""The run directory: the contract between what trains and everything that reads its results.

    config.json     the run's identity: settings, hash, parent, artifact, provenance
    status.json     its state (pending, running, done, failed), the reason, and each phase
    result.json     results of the training phase: steps, examples, tokens, seconds
    metrics.jsonl   one object per step or evaluation
    progress.json   position of the running phase, for display
    lock.json       the process that holds the directory

The JSON files are written atomically. metrics.jsonl is appended to; a last line that a kill cut
off is ignored. The state `done` is written last: such a directory is complete.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuning.runs import atomic, provenance, typed
from tuning.runs.errors import Afresh, Interrupted, StageFailed, UserError
from tuning.runs.identity import FORMAT, differences
from tuning.runs.json_text import NotJSON, parse_object
from tuning.runs.lock import Lock, drop_if_empty
from tuning.runs.log import logger
from tuning.runs.names import require_file_name
from tuning.runs.progress import begin_step, tell

SHORT = 8
_OURS = re.compile(r"lock\.json|\.lock|\..*\.tmp")
"""Files that an interrupted claim may leave before config.json is written."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of a run, written to config.json when its directory is created."""

    run_name: str
    kind: str
    hash: str
    hashed: dict[str, Any]
    settings: dict[str, Any]
    parent: dict[str, Any] | None = None
    artifact: str | None = None
    """`adapter` or `full`: the form in which the run saves its model; None if it saves none."""


def locate(root: Path, run_name: str, hash_: str) -> Path:
    """`root/run_name`, or `root/run_name-{hash8}` if another run has that name, or the same run
    written by another version of the code.
    """
    plain = root / require_file_name("run", run_name)
    suffix = f"-{hash_[:SHORT]}"
    standing = RunDirectory(plain).config
    free = standing is None or (standing.get("hash") == hash_ and _is_current(standing))
    if free or run_name.endswith(suffix):
        return plain
    return root / f"{run_name}{suffix}"


def take(path: Path, identity: Identity, *, force: bool = False) -> None:
    """Create the directory that the user chose for a run; UserError if it holds anything else.

    `force`: it may hold another run, but never files that are not a run's.
    """
    standing = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        standing = RunDirectory(path).config
        others = [entry.name for entry in path.iterdir() if not _OURS.fullmatch(entry.name)]
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be a run directory ({error.strerror}); choose another folder"
        ) from None
    except NotJSON:
        others = ["config.json"]
    if standing is None and not others:
        return
    if standing is None or "hashed" not in standing:
        raise UserError(
            f"'{path}' is not empty and is not a run directory; choose a new or an empty folder"
        )
    if standing.get("format") != FORMAT:
        raise UserError(f"'{path}' holds a run of another version of tuning; choose another folder")
    if standing.get("hash") != identity.hash and not force:
        changed = "; ".join(differences(identity.hashed, standing["hashed"]))
        raise UserError(
            f"'{path}' holds a run with other settings ({changed}); choose another folder"
        )


def _is_current(config: dict[str, Any] | None) -> bool:
    return config is None or config.get("format") == FORMAT


_WORK = ("checkpoint-*", "model", "result.json", "responses.jsonl")
"""What a run directory has once something was made in it."""


def _step_of(line: dict[str, Any]) -> float:
    """The step of a line of metrics.jsonl; a line that has none is not kept on resume."""
    step = line.get("step")
    return step if isinstance(step, int | float) else math.inf


class RunDirectory:
    """Reads a run directory; writes through `claim()` only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report_to: tuple[str, ...] = ()
        """Where a training reports its metrics besides metrics.jsonl: `wandb`, or nothing."""
        self.logs: Path | None = None
        """Where the engine writes log.txt and traces; None: where its settings say."""
        self._last_progress = 0.0

    def __repr__(self) -> str:
        return f"RunDirectory({self.path})"

    @property
    def name(self) -> str:
        """The name of the directory, which is the final name of the run."""
        return self.path.name

    @property
    def config(self) -> dict[str, Any] | None:
        """config.json; None if no run has claimed the directory."""
        return typed.read(self.path / "config.json", typed.CONFIG)

    @property
    def hash(self) -> str | None:
        """The hash of the run in this directory; None if there is none."""
        config = self.config
        return config.get("hash") if config else None

    @property
    def is_current(self) -> bool:
        """Whether this version of the code can use the directory; true for an empty one."""
        return _is_current(self.config)

    @property
    def status(self) -> dict[str, Any]:
        """status.json; a directory without one is pending."""
        status = typed.read(self.path / "status.json", typed.STATUS) or {}
        for name, phase in status.get("phases", {}).items():
            typed.check(self.path / "status.json", phase, typed.PHASE, f"phases: {name}")
        return {"state": "pending", "reason": "", "phases": {}} | status

    @property
    def result(self) -> dict[str, Any]:
        """result.json; {} if it does not exist yet."""
        return typed.read(self.path / "result.json", typed.RESULT) or {}

    def done(self, phase: str) -> bool:
        """Whether a phase (train, infer or evaluate) is done, by this version of the code."""
        return phase in self.phases_done()

    def phases_done(self) -> frozenset[str]:
        """The phases that are done, by this version of the code."""
        phases = self.status["phases"].items()
        done = frozenset(name for name, entry in phases if entry.get("state") == "done")
        return done if done and self.is_current else frozenset()

    def metrics(self) -> list[dict[str, Any]]:
        """The objects in metrics.jsonl; a last line that a kill cut off is ignored."""
        return read_lines(self.path / "metrics.jsonl")

    def write_status(
        self, state: str, reason: str = "", phases: dict[str, dict[str, Any]] | None = None
    ) -> None:
        """Set the state and its reason, and update the given phases."""
        status = self.status
        status |= {"state": state, "reason": reason, "updated": _now()}
        status["phases"] = status["phases"] | (phases or {})
        atomic.write_json(self.path / "status.json", status)

    def write_result(self, **values: Any) -> None:
        """Merge `values` into result.json."""
        atomic.write_json(self.path / "result.json", self.result | values)

    def log_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl.

        Raises StageFailed for a loss or a gradient that is no number: the weights are none either.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(record.get(name) or 0.0):
                raise StageFailed(
                    f"the training diverged: {name} is {record[name]} at step {record['step']}. "
                    "Lower --learning_rate (pre-training: --max_lr), or look at the rows of that "
                    "step; the same command goes on from the last checkpoint."
                )
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, so that a resumed run counts no step twice."""
        kept = [line for line in self.metrics() if _step_of(line) <= step]
        atomic.write_text(
            self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept)
        )

    def progress(
        self, phase: str, at: int, of: int, note: str = "", *, final: bool = False
    ) -> None:
        """Report position `at` of `of` in a phase; at most two writes a second unless `final`.

        Parts of what follows (`tell_part`) become its note.
        """
        begin_step(lambda part: self.progress(phase, at, of, part))
        now = time.monotonic()
        if not final and now - self._last_progress < 0.5:
            return
        self._last_progress = now
        record = {"phase": phase, "at": at, "of": of, "note": note, "time": time.time()}
        tell(directory=str(self.path), **record)
        with contextlib.suppress(OSError):
            atomic.write_json(self.path / "progress.json", record)

    @contextlib.contextmanager
    def phase(self, name: str, *, last: bool = True) -> Iterator[None]:
        """Mark a phase as running for the block, then as done; its seconds add up over resumes.

        The run itself is done with its `last` phase. After an exception the phase is pending, and
        the run failed, or pending if it was asked to stop.
        """
        before = self.status["phases"].get(name, {}).get("seconds", 0.0)
        start = time.monotonic()

        def entry(state: str) -> dict[str, Any]:
            return {"state": state, "seconds": round(before + time.monotonic() - start, 2)}

        self.write_status("running", "", {name: entry("running")})
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.write_status(*_ending(error), {name: entry("pending")})
            raise
        self.write_status("done" if last else "running", "", {name: entry("done")})


def _ending(error: BaseException) -> tuple[str, str]:
    """The state and the reason to record for an exception."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "pending", "stopped on request; the same command resumes"
    if isinstance(error, Afresh):
        return "pending", "goes on in a new process"
    message = " ".join(str(error).split()) or type(error).__name__
    return "failed", message[:500]


@contextlib.contextmanager
def claim(
    root: Path,
    identity: Identity,
    *,
    exact: bool = False,
    wait: bool = True,
    force: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[RunDirectory]:
    """Hold the directory of a run for writing; it is created on the first claim.

    `wait=False` raises StageFailed if another process holds it. `force` empties it first. `exact`
    uses root/run_name or raises UserError. `check` is called while waiting and may raise.
    """

    def place() -> Path:
        if not exact:
            return locate(root, identity.run_name, identity.hash)
        take(root / identity.run_name, identity, force=force)
        return root / identity.run_name

    path = place()
    while True:
        try:
            with Lock(path).holding(wait=wait, check=check):
                settled = place()
                if settled == path:
                    directory = RunDirectory(path)
                    _prepare(directory, identity, force=force)
                    with _without_traces(directory):
                        yield directory
                    return
        except (OSError, UserError):
            drop_if_empty(path)
            raise
        path = settled


@contextlib.contextmanager
def _without_traces(directory: RunDirectory) -> Iterator[None]:
    """The user's mistake empties a run directory in which nothing was made yet."""
    try:
        yield
    except UserError:
        if not any(True for work in _WORK for _ in directory.path.glob(work)):
            _empty(directory.path)
        raise


def _prepare(directory: RunDirectory, identity: Identity, *, force: bool) -> None:
    if not directory.is_current:
        raise StageFailed(
            f"{directory.path} was written by another version of tuning and was not changed. "
            "Move it away, or use that version."
        )
    for left in directory.path.glob(".*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    if force:
        _empty(directory.path)
    now = provenance.collect()
    standing = directory.config
    if standing is None:
        atomic.write_json(
            directory.path / "config.json",
            {
                "format": FORMAT,
                "run_name": directory.name,
                "kind": identity.kind,
                "hash": identity.hash,
                "parent": identity.parent,
                "artifact": identity.artifact,
                "settings": identity.settings,
                "hashed": identity.hashed,
                "provenance": now,
            },
        )
        return
    if standing.get("hash") != identity.hash:
        changed = "; ".join(differences(identity.hashed, standing.get("hashed") or {}))
        raise StageFailed(f"{directory.path} holds another configuration ({changed}).")
    if directory.status["state"] != "done" and (
        drifted := provenance.drift(now, standing.get("provenance") or {})
    ):
        logger.warning(f"{directory.name} was started with other versions: {', '.join(drifted)}")


def _empty(path: Path) -> None:
    """Delete everything in a run directory except the lock, which is held; its status first, so
    that one whose deletion was interrupted is not taken for a complete one.
    """
    (path / "status.json").unlink(missing_ok=True)
    for entry in path.iterdir():
        if entry.name in ("lock.json", ".lock"):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file up to the first damaged line; [] if there is no file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for line in raw.split(b"\n")[:-1]:
        try:
            rows.append(parse_object(line.decode(), str(path), nan=True))
        except (NotJSON, UnicodeDecodeError):
            logger.warning(f"{path} has a damaged line; the rest is ignored")
            break
    return rows


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
