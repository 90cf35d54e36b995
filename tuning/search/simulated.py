"""Score surfaces for tests and benchmarks, in the shapes that the study of budgets found.

pass@1 against the share of SFT rises steeply from a cold start at 0 (pure preference tuning of a
base model), then is flat or falls; it rises with the logarithm of the budget, and larger budgets
are flatter and peak at smaller shares. Heights, slopes and places are drawn from a seed.
"""

from __future__ import annotations

import numpy as np

from tuning.search.arms import Arm, Measure, Result
from tuning.search.surrogate import Array

METHODS = ("dpo", "kto", "grpo")
RATIOS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.75, 1.0)


class Surface:
    """The true scores of arms, and their noisy evaluations.

    Args:
        seed: Of the surface, of the difficulty of its prompts, and of trainings.
        prompts: Test prompts, the same for every arm.
        samples: Answers a prompt.
        training: Standard deviation of the score between trainings.
    """

    def __init__(
        self, seed: int, *, prompts: int = 500, samples: int = 4, training: float = 0.007
    ) -> None:
        self.seed, self.prompts, self.samples, self.training = seed, prompts, samples, training
        draw = np.random.default_rng(seed)
        self.base = draw.uniform(0.03, 0.25)
        self.most = draw.uniform(0.45, 0.85)
        self.half = 10 ** draw.uniform(2.6, 3.8)
        """The budget that gains half of what can be gained."""
        self.peak = draw.uniform(0.15, 1.0)
        """The share from which a budget of 1,000 gains nothing by more SFT."""
        self.end = draw.uniform(0.0, 0.4)
        """The part of its gain that is lost from there to SFT alone."""
        self.cold = {method: draw.uniform(0.4, 0.95) for method in METHODS}
        """The part of the gain that is missing without any SFT."""
        self.lift = {method: draw.uniform(0.0, 0.2) for method in METHODS}
        """What preference tuning adds to it at most, half way."""
        self.hardness = draw.normal(0.0, 1.5, prompts)
        """Of each prompt, in logits."""

    def truth(self, arm: Arm) -> float:
        """The expected pass@1 of an arm."""
        gain = (self.most - self.base) * arm.size / (arm.size + self.half)
        flat = (1000 / arm.size) ** 0.35
        peak = float(np.clip(self.peak * (1000 / arm.size) ** 0.3, 0.08, 1.0))
        cold = self.cold.get(arm.method, 0.0) * min(1.0, flat**0.5)
        rise = 1 - cold * np.exp(-3.0 * arm.ratio / peak)
        beyond = max(0.0, arm.ratio - peak) / max(1e-9, 1 - peak)
        lost = min(0.6, self.end * flat) * beyond**1.5
        lift = self.lift.get(arm.method, 0.0) * flat**0.5 * 4 * arm.ratio * (1 - arm.ratio)
        return float(min(0.97, self.base + gain * (rise - lost) * (1 + lift)))

    def correct(self, arm: Arm) -> Array:
        """Right answers to each prompt of one training of an arm."""
        key = [self.seed, arm.size, arm.n_sft, *arm.method.encode()]
        draw = np.random.default_rng(key)
        score = float(np.clip(self.truth(arm) + draw.normal(0, self.training), 0.005, 0.995))
        chance = _with_mean(self.hardness, score)
        return draw.binomial(self.samples, chance).astype(float)

    def result(self, arm: Arm, *, first: int | None = None) -> Result:
        """The measures of an arm, on the first prompts or on all."""
        correct = self.correct(arm)
        if first is not None:
            return Result(first=Measure.of(correct[:first].tolist(), self.samples))
        return Result(full=Measure.of(correct.tolist(), self.samples))


def _with_mean(hardness: Array, mean: float) -> Array:
    """Chances of a right answer, of prompts this hard, with this mean."""
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        chances: Array = 1 / (1 + np.exp(hardness - middle))
        low, high = (middle, high) if chances.mean() < mean else (low, middle)
    return chances


def grid(
    sizes: tuple[int, ...] = (1000,),
    methods: tuple[str, ...] = ("dpo",),
    ratios: tuple[float, ...] = RATIOS,
) -> tuple[Arm, ...]:
    """The arms of a grid; SFT alone is one arm for all methods."""
    made = []
    for size in sizes:
        for ratio in ratios:
            for method in methods if ratio < 1 else ("",):
                made.append(Arm(model="m", size=size, n_sft=round(ratio * size), method=method))
    return tuple(made)
