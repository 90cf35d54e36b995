"""Beam search over any engine that gives log-probabilities: the rules of transformers' `generate`
with its defaults, so that the search means the same on every backend.

An ended beam counts by its log-probability divided by its length in tokens. The search of a prompt
is over when its width is full of ended beams and no running one, at its present length, could still
take the place of the last of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

Beam = tuple[float, tuple[int, ...]]
"""A log-probability, or a score made of it, and the tokens so far."""


@dataclass(kw_only=True)
class BeamSearch:
    """The search for the answers to one prompt."""

    width: int
    ends: Collection[int]
    """Tokens that end a beam; they stay in it."""
    longest: int
    """Tokens after which every beam is ended."""
    running: list[Beam] = field(default_factory=lambda: [(0.0, ())])
    """Best first."""
    ended: list[Beam] = field(default_factory=list)
    """The best so far, best first, by score."""

    @property
    def candidates(self) -> int:
        """Continuations that are looked at in a step; as many of each running beam suffice."""
        return max(2, 1 + len(self.ends)) * self.width

    @property
    def over(self) -> bool:
        """Whether nothing is left that could become one of the best."""
        if not self.running:
            return True
        score, tokens = self.running[0]
        full = len(self.ended) == self.width
        return full and score / max(len(tokens), 1) <= self.ended[-1][0]

    def advance(self, continuations: Sequence[Mapping[int, float]]) -> None:
        """One token further.

        `continuations`: for each running beam, the log-probabilities of at least the likeliest
        `candidates` tokens after it, by token.
        """
        length = len(self.running[0][1]) + 1
        following = (
            (score + more, (*tokens, token))
            for (score, tokens), after in zip(self.running, continuations, strict=True)
            for token, more in after.items()
        )
        best = heapq.nlargest(self.candidates, following, key=lambda beam: beam[0])
        ends = [tokens[-1] in self.ends or length == self.longest for _, tokens in best]
        new = [
            (score / length, tokens)
            for (score, tokens), is_end in zip(best[: self.width], ends, strict=False)
            if is_end
        ]
        self.ended = heapq.nlargest(self.width, self.ended + new, key=lambda beam: beam[0])
        going = [beam for beam, is_end in zip(best, ends, strict=True) if not is_end]
        self.running = going[: self.width]
