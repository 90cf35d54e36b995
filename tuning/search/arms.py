"""What a search chooses among: the ways to spend each budget, and what was measured of them.

The terms are those of best-arm identification: an arm is one way to spend a budget, a contest all
arms of one model and budget, of which the best is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Contest = tuple[str, int]
"""A base model and a budget."""


@dataclass(frozen=True, kw_only=True, order=True)
class Arm:
    """SFT on `n_sft` examples, then preference tuning by `method` on what that leaves of `size`."""

    model: str
    size: int
    """The budget: a cost, which is a number of examples where each costs 1."""
    n_sft: int
    method: str = ""
    """"" where SFT takes the whole budget."""
    sft_cost: float = 1.0
    """What an SFT example costs."""

    @property
    def ratio(self) -> float:
        """The share of the budget that SFT takes."""
        return min(1.0, self.n_sft * self.sft_cost / self.size) if self.method else 1.0

    @property
    def contest(self) -> Contest:
        """What it competes in."""
        return self.model, self.size

    @property
    def key(self) -> str:
        """Its name in the record of a search: `tiny 1000 250 dpo`."""
        return f"{self.model} {self.size} {self.n_sft} {self.method}".strip()


@dataclass(frozen=True, kw_only=True)
class Measure:
    """pass@1 over some prompts, and the variance of that mean."""

    prompts: int
    score: float
    variance: float

    @classmethod
    def of(cls, correct: Sequence[float], samples: int) -> Measure:
        """From the right answers to each prompt, of `samples`.

        Prompts are the independent units, so the variance is that of their shares over their
        number; with one answer a prompt it is the binomial one. It is never below that of two more
        right and two more wrong prompts (Agresti and Coull 1998) over eight times as many: scores
        near 0 and 1 are not known exactly.
        """
        shares = np.asarray(correct, dtype=float) / samples
        n, score = shares.size, float(shares.mean())
        inner = (score * n + 2) / (n + 4)
        least = inner * (1 - inner) / (n + 4) / 8
        seen = float(shares.var(ddof=1)) / n if n > 1 else 1.0
        return cls(prompts=n, score=score, variance=max(seen, least))

    @property
    def half_width(self) -> float:
        """Half of its 95% interval."""
        return 1.96 * self.variance**0.5


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is known of an arm that was started; neither measure: its runs failed."""

    first: Measure | None = None
    """Over the first share of the prompts."""
    full: Measure | None = None
    """Over all prompts."""

    @property
    def best(self) -> Measure | None:
        """That over the most prompts."""
        return self.full or self.first
