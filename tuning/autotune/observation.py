"""What a trial measured, and the file that the trials of a search are kept in: JSON lines, one
observation each, appended as they come, so that a search that was killed goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal, get_args

from tuning.autotune.space import Candidate
from tuning.runs.json_text import NotJSON, parse_object

Outcome = Literal["ok", "oom", "crash", "hang", "garbage"]
"""Trained; out of memory of whatever kind; ended otherwise; exceeded its time; no numbers, or none
that a training could have."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A trial of a candidate. What was not measured is None."""

    candidate: Candidate
    outcome: Outcome
    step_seconds: tuple[float, ...] = ()
    """Of each timed optimizer step, warm-up left out; empty unless ok."""
    peak_bytes: int | None = None
    """Most memory of one device at any moment of the trial: what the device had to provide, so
    with what the allocator reserved and the context."""
    tokens_per_second: float | None = None
    """Of all processes together."""
    mfu: float | None = None
    """Model FLOPs utilization, in [0, 1]; None on a device whose peak is not known."""
    seconds: float | None = None
    """How long the trial took, with its start."""
    note: str = ""
    """What happened, for people: the last line of an error."""

    @property
    def ok(self) -> bool:
        """Whether it trained, and its numbers can be used."""
        return self.outcome == "ok"

    @property
    def step(self) -> float | None:
        """Seconds of an optimizer step: the median, which a slow step does not move."""
        return median(self.step_seconds) if self.step_seconds else None

    @property
    def spread(self) -> float:
        """Standard error of the mean step in seconds; 0 with fewer than two."""
        n = len(self.step_seconds)
        return stdev(self.step_seconds) / math.sqrt(n) if n > 1 else 0.0

    def checked(self) -> Observation:
        """The same, or `garbage` if it claims to have trained with numbers that cannot be."""
        numbers = (*self.step_seconds, self.peak_bytes, self.tokens_per_second, self.mfu or 1.0)
        sound = bool(self.step_seconds) and all(
            isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in numbers
        )
        if not self.ok or (sound and (self.mfu or 0.0) <= 1.0):
            return self
        return Observation(
            candidate=self.candidate,
            outcome="garbage",
            seconds=self.seconds,
            note=f"impossible numbers: {self.note or describe_numbers(self)}",
        )

    def to_json(self) -> dict[str, Any]:
        """Every field by name; the inverse of `from_json`."""
        return asdict(self) | {"step_seconds": list(self.step_seconds)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Observation:
        """The observation of a line; unknown keys are left out.

        Raises ValueError or TypeError if it is none.
        """
        known = {f.name for f in fields(cls)} & value.keys()
        given = {name: value[name] for name in known}
        if given.get("outcome") not in OUTCOMES:
            raise ValueError(f"outcome {given.get('outcome')!r} is none of {', '.join(OUTCOMES)}")
        names = {f.name for f in fields(Candidate)}
        candidate = {k: v for k, v in dict(given["candidate"]).items() if k in names}
        given["candidate"] = Candidate(**candidate)
        given["step_seconds"] = tuple(float(s) for s in given.get("step_seconds") or ())
        return cls(**given).checked()


def describe_numbers(observation: Observation) -> str:
    """Mean step, memory and speed in one line, for a note."""
    o = observation
    mean = fmean(o.step_seconds) if o.step_seconds else None
    return f"step {mean} s, peak {o.peak_bytes} bytes, {o.tokens_per_second} tokens/s, MFU {o.mfu}"


@dataclass(frozen=True)
class History:
    """The observations of a search on disk."""

    path: Path

    def read(self) -> list[Observation]:
        """All that are whole, in order; a line that a kill cut off, or that is none, is left out.
        An empty list if there is no file."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(lines, 1):
            try:
                where = f"{self.path}:{number}"
                found.append(Observation.from_json(parse_object(line.decode(), where, nan=True)))
            except (NotJSON, UnicodeDecodeError, ValueError, TypeError, KeyError):
                continue
        return found

    def append(self, observation: Observation) -> None:
        """Add a line, on disk before this returns; what a kill left of a line before is ended."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write((b"\n" if cut else b"") + json.dumps(observation.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def latest(observations: Sequence[Observation]) -> dict[Candidate, Observation]:
    """The last observation of each candidate."""
    return {o.candidate: o for o in observations}
