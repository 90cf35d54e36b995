"""Binary search by decision rules, on measurements alone:

    start with the smallest micro-batch, checkpointing, full_shard
    memory < 0.70 and MFU < target             -> double the micro-batch
    memory > 0.85, or out of memory            -> halve it, or enable checkpointing
    MFU < 0.80 * target and checkpointing on   -> disable checkpointing
    else                                       -> converged

A rule that leads to what was tried already leads on to the rules there; one whose candidate does
not exist, or failed for another reason than memory, gives way to the next. So nothing is tried
twice and every search ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tuning.autotune.observation import Observation
from tuning.autotune.score import Scorer
from tuning.autotune.space import Candidate, Space

ROOMY, TIGHT = 0.70, 0.85
"""Fractions of the capacity."""
NEAR = 0.80
"""Of the target, below which checkpointing is worth disabling."""
TARGET_MFU = 0.5
MOST_FAILURES = 3
"""Candidates that may fail, one after the other, before anything ran."""


class Heuristic:
    """See above."""

    def __init__(self, space: Space, scorer: Scorer, target_mfu: float = TARGET_MFU) -> None:
        """`target_mfu`: where no MFU is known, every speed counts as below it."""
        self.space, self.scorer, self.target = space, scorer, target_mfu
        self._seen: dict[Candidate, Observation] = {}
        self._at: Observation | None = None
        """The last that ran or was out of memory: where the rules are applied."""

    def tell(self, observation: Observation) -> None:
        """Move to an observation that says something of memory."""
        self._seen[observation.candidate] = observation
        if observation.ok or observation.outcome == "oom":
            self._at = observation

    def error(self) -> str | None:
        """Nothing is predicted."""
        return None

    def ask(self) -> Candidate | None:
        """What the first rule that applies leads to."""
        if self._at is None:
            return next((c for c in self._starts() if c not in self._seen), None)
        return self._follow(self._at, {self._at.candidate})[0]

    def _follow(self, at: Observation, been: set[Candidate]) -> tuple[Candidate | None, bool]:
        """Where the rules lead from an observation, through those that are known; and whether that
        is final: a candidate to try, or no rule that applies."""
        moves = list(self._rules(at))
        for move in moves:
            known = self._seen.get(move)
            if known is None:
                return move, True
            if move in been or not (known.ok or known.outcome == "oom"):
                continue
            been.add(move)
            found, final = self._follow(known, been)
            if final:
                return found, True
        return None, not moves

    def _starts(self) -> Iterator[Candidate]:
        """The most conservative candidate; if it fails, its neighbours without one of its
        switches."""
        order = ("full_shard", "hybrid_shard", "none")
        if len(self._seen) >= MOST_FAILURES:
            return
        yield from sorted(
            self.space.candidates,
            key=lambda c: (
                c.use_compile,
                c.sep_size,
                size_of(c),
                not c.gradient_checkpointing,
                order.index(c.sharding),
            ),
        )

    def _rules(self, at: Observation) -> Iterator[Candidate]:
        """What the rules propose at an observation, the first rule first."""
        here, memory = at.candidate, self.scorer.memory(at)
        tight = at.outcome == "oom" or memory is None or memory > TIGHT
        if tight:
            yield from self._sized(here, smaller=True)
            yield from self._with(here, checkpointing=True)
            return
        known = at.mfu is not None
        if memory is not None and memory < ROOMY and (not known or (at.mfu or 0) < self.target):
            yield from self._sized(here, smaller=False)
        if not known or (at.mfu or 0) < NEAR * self.target:
            yield from self._with(here, checkpointing=False)

    def _with(self, here: Candidate, *, checkpointing: bool) -> Iterator[Candidate]:
        if here.gradient_checkpointing != checkpointing:
            yield replace(here, gradient_checkpointing=checkpointing)

    def _sized(self, here: Candidate, *, smaller: bool) -> Iterator[Candidate]:
        """Twice or half the size, or the size next to that on the way, if there is one."""
        sizes = {size_of(c): c for c in self.space.candidates if self._differ_in_size(c, here)}
        size = size_of(here)
        if smaller:
            found = [s for s in sizes if s < size]
            wanted = min([s for s in found if 2 * s >= size], default=max(found, default=None))
        else:
            found = [s for s in sizes if s > size]
            wanted = max([s for s in found if s <= 2 * size], default=min(found, default=None))
        if wanted is not None:
            yield sizes[wanted]

    def _differ_in_size(self, left: Candidate, right: Candidate) -> bool:
        def unsized(c: Candidate) -> Candidate:
            return replace(c, micro_batch=None, max_tokens_per_gpu=None)

        return unsized(left) == unsized(right)


def size_of(candidate: Candidate) -> int:
    """Examples, or tokens, of a forward pass; 0 where neither can be chosen."""
    return candidate.max_tokens_per_gpu or candidate.micro_batch or 0
