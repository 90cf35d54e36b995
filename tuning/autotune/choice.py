"""What a search chose, and the table of its trials for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuning.autotune.cost import Prediction
from tuning.autotune.observation import Observation, latest
from tuning.autotune.score import Scorer, fastest_of
from tuning.autotune.space import Candidate
from tuning.flags import restore

HEAD = (
    "",
    "candidate",
    "result",
    "tokens/s",
    "MFU",
    "memory",
    "estimated",
    "used",
    "score",
    "s",
)
"""Of the table of trials; `used` is the memory as a share of the device's."""
Source = Literal["cache", "search", "default"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a run is computed."""

    source: Source
    compute: dict[str, Any]
    """The ComputeConfig, as JSON values."""
    processes: int
    candidate: dict[str, Any] | None = None
    """None: the run's own settings."""
    key: str = ""
    trials: int = 0
    seconds: float = 0.0
    score: float | None = None
    prediction_error: str | None = None
    why: str = ""

    def applied(self, run: Any) -> Any:
        """The run, computed so."""
        return replace(run, compute=restore(type(run.compute), self.compute))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A choice, and what it rests on."""

    choice: Choice
    observations: tuple[Observation, ...]
    scorer: Scorer
    expected: Mapping[Candidate, Prediction]
    """What the cost model expects of each candidate before it has seen a trial."""


def winner_of(choice: Choice) -> Candidate | None:
    """The candidate of a choice."""
    return Candidate(**choice.candidate) if choice.candidate else None


def described(o: Observation) -> str:
    """A trial in one line."""
    if not o.ok:
        return f"{o.candidate}: {o.outcome} ({o.note})"
    speed = f"{o.tokens_per_second or 0:,.0f} tokens/s"
    if o.mfu is not None:
        speed += f", MFU {o.mfu:.1%}"
    return f"{o.candidate}: {speed}, {(o.peak_bytes or 0) / 2**30:.2f} GiB"


def table(found: Found) -> str:
    """The trials as a table, the winner marked; memory beside what was estimated before any."""
    scorer, winner = found.scorer, winner_of(found.choice)
    seen = latest(found.observations)
    fastest = fastest_of(seen.values())
    rows = [HEAD]
    for o in seen.values():
        expected = found.expected.get(o.candidate)
        memory = scorer.memory(o)
        rows.append(
            (
                "*" if o.candidate == winner else "",
                str(o.candidate),
                o.outcome,
                f"{o.tokens_per_second:,.0f}" if o.tokens_per_second else "",
                f"{o.mfu:.1%}" if o.mfu is not None else "",
                f"{o.peak_bytes / 2**30:.2f} GiB" if o.peak_bytes else "",
                f"{expected.peak_bytes / 2**30:.2f} GiB" if expected else "",
                f"{memory:.0%}" if memory is not None else "",
                f"{scorer.score(o, fastest):.3f}" if o.ok else "",
                f"{o.seconds:.0f}" if o.seconds is not None else "",
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as lines, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join(lines)
