"""The loop of a search: ask a strategy, try, remember, tell; until it has nothing more to ask, or
the budget is spent. What a trial does, in which process and within which time, is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from tuning.autotune.observation import History, Observation, latest
from tuning.autotune.score import Scorer
from tuning.autotune.space import Candidate, Space
from tuning.autotune.strategies import Strategy
from tuning.runs.errors import Interrupted, Quit, cut

MAX_ITERATIONS = 15
"""Trials of a search, those of an earlier attempt at it included."""
Ended = Literal["converged", "out of time", "max iterations"]
Trial = Callable[[Candidate], Observation]
Progress = Callable[[Observation, int, int], None]
"""Called with each observation, its number from 1, and the most there can be."""


@dataclass(kw_only=True)
class Budget:
    """What a search may spend; starts when it is made."""

    seconds: float
    """Wall time of all trials."""
    max_iterations: int = MAX_ITERATIONS
    """Trials, those of the history included."""
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def left(self) -> float:
        """Seconds until the search must be over; a trial limits itself to it."""
        return max(0.0, self.seconds - (self.clock() - self.began))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a search found."""

    winner: Candidate | None
    """The safe candidate of the highest score; None if nothing that was tried is safe."""
    observations: tuple[Observation, ...]
    """All, in order, those of the history first."""
    ended: Ended
    """Why no more was tried."""
    seconds: float
    """Wall time of this attempt."""
    prediction_error: str | None = None
    """How far the cost model was off, in words; None without one."""

    @property
    def why(self) -> str:
        """One line for people: how many trials, what came of them, and why the search ended."""
        counts: dict[str, int] = {}
        for o in self.observations:
            counts[o.outcome] = counts.get(o.outcome, 0) + 1
        came = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "none"
        found = f"best: {self.winner}" if self.winner else "nothing that was tried is safe to use"
        return f"{found}; {len(self.observations)} trials ({came}); {self.ended}"


class OutOfTime(Exception):
    """A trial was ended by the end of the search, which says nothing of its candidate."""


def search(
    space: Space,
    strategy: Strategy,
    trial: Trial,
    *,
    scorer: Scorer,
    budget: Budget,
    history: History | None = None,
    progress: Progress | None = None,
) -> Result:
    """Search a space until the strategy is satisfied or the budget is spent.

    Args:
        space: What may be tried; observations of anything else in the history are passed over.
        strategy: What to try next.
        trial: Measures a candidate, within `budget.left()` seconds. Whatever it raises is a crash
            of that candidate.
        scorer: What is best.
        budget: Seconds and trials. No trial is begun that, as long as the longest so far, would
            end after it; the first is always begun while there is time.
        history: Where observations are kept. What is there already is told, not tried again.
        progress: Called after each trial.

    Raises:
        Interrupted, Quit, KeyboardInterrupt: as the trial raises them; what was observed is kept.
    """
    seen = _resumed(space, strategy, history)
    ended: Ended = "converged"
    while True:
        if len(seen) >= budget.max_iterations:
            ended = "max iterations"
            break
        if not _time_for_another(budget, seen):
            ended = "out of time"
            break
        candidate = strategy.ask()
        if candidate is None:
            break
        try:
            observation = _tried(trial, candidate, budget.clock)
        except OutOfTime:
            ended = "out of time"
            break
        if history is not None:
            history.append(observation)
        seen.append(observation)
        strategy.tell(observation)
        if progress is not None:
            progress(observation, len(seen), budget.max_iterations)
    best = scorer.best(latest(seen).values())
    return Result(
        winner=best.candidate if best else None,
        observations=tuple(seen),
        ended=ended,
        seconds=budget.clock() - budget.began,
        prediction_error=strategy.error(),
    )


def _resumed(space: Space, strategy: Strategy, history: History | None) -> list[Observation]:
    """What an earlier attempt observed of this space, told to the strategy."""
    known = set(space.candidates)
    seen = [o for o in (history.read() if history else []) if o.candidate in known]
    for observation in seen:
        strategy.tell(observation)
    return seen


def _time_for_another(budget: Budget, seen: Iterable[Observation]) -> bool:
    longest = max((o.seconds or 0.0 for o in seen), default=0.0)
    return budget.left() > longest


def _tried(trial: Trial, candidate: Candidate, clock: Callable[[], float]) -> Observation:
    """The observation of a trial, with the time it took; a crash if it raises, garbage if it is of
    another candidate."""
    began = clock()
    try:
        observation = trial(candidate).checked()
    except (Interrupted, Quit, OutOfTime):
        raise
    except Exception as error:
        note = cut(f"{type(error).__name__}: {error}", 300)
        observation = Observation(candidate=candidate, outcome="crash", note=note)
    if observation.candidate != candidate:
        note = f"the result is of another candidate: {observation.candidate}"
        observation = Observation(candidate=candidate, outcome="garbage", note=note)
    return replace(observation, seconds=clock() - began)
