"""What makes a candidate better than another: alpha * MFU - beta * max(0, memory - 0.85)^2, with
memory as a fraction of the device's capacity, and never a winner above 0.9 of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuning.autotune.observation import Observation

SOFT = 0.85
"""Fraction of the capacity above which memory costs score."""
LIMIT = 0.90
"""Fraction of the capacity above which nothing wins."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """The weights of speed and memory, on a device."""

    capacity: float
    """Bytes of one device."""
    alpha: float = 1.0
    """Weight of MFU."""
    beta: float = 1.0
    """Weight of the memory penalty; at 1, memory of 0.9 costs as much as 0.0025 of MFU."""

    def memory(self, observation: Observation) -> float | None:
        """Peak memory as a fraction of the capacity; None if it was not measured."""
        peak = observation.peak_bytes
        return None if peak is None else peak / self.capacity

    def score(self, observation: Observation, fastest: float | None = None) -> float:
        """The score of a trial; minus infinity unless it is ok.

        Args:
            observation: Of a trial.
            fastest: Tokens a second of the fastest seen; where the MFU is not known, tokens a
                second over this stand in for it.
        """
        memory = self.memory(observation)
        if not observation.ok or memory is None:
            return float("-inf")
        speed = observation.mfu
        if speed is None:
            tokens = observation.tokens_per_second or 0.0
            speed = tokens / (fastest or tokens or 1.0)
        return self.alpha * speed - self.beta * self.penalty(memory)

    def penalty(self, memory: float) -> float:
        """max(0, memory - 0.85)^2."""
        return max(0.0, memory - SOFT) ** 2

    def safe(self, observation: Observation) -> bool:
        """Whether it may win: ok, and its memory within the limit."""
        memory = self.memory(observation)
        return observation.ok and memory is not None and memory <= LIMIT

    def best(self, observations: Iterable[Observation]) -> Observation | None:
        """The safe observation of the highest score; None if none is safe."""
        seen = list(observations)
        fastest = fastest_of(seen)
        safe = [o for o in seen if self.safe(o)]
        return max(safe, key=lambda o: self.score(o, fastest), default=None)


def fastest_of(observations: Iterable[Observation]) -> float | None:
    """Most tokens a second of all that ran; None if none did."""
    return max((o.tokens_per_second or 0.0 for o in observations if o.ok), default=None) or None
