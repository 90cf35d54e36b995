"""Settings of sweetspots: the rules of perplexity and of pass@k, how each is measured, how often,
and early stopping.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tuning.runs.errors import UserError
from tuning.settings import require, setting
from tuning.sweetspots.rules import PERPLEXITY, Measure, Patience, Rule, Threshold, pass_at


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """The perplexity at which SFT saves sweetspots, how it is measured, and early stopping."""

    perplexity_thresholds: tuple[float, ...] = ()
    """Save a sweetspot when the validation perplexity falls to each of these."""
    perplexity_patience: tuple[str, ...] = ()
    """Also save one at a plateau, N:DELTA: it fell by less than DELTA in each of N evaluations."""
    eval_steps: int = 10
    """Optimizer steps between two measurements."""
    validation_size: int = 256
    """Examples of the validation pool to measure on; all if the pool is smaller."""
    early_stop: bool = True
    """Stop training when the last rule has fired."""

    def __post_init__(self) -> None:
        check_thresholds(self.perplexity_thresholds)
        _check_patience("perplexity_patience", self.perplexity_patience)
        for name in ("eval_steps", "validation_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")

    @property
    def rules(self) -> list[Rule]:
        """The rules in the order given: thresholds, then patience."""
        return _rules(PERPLEXITY, self.perplexity_thresholds, self.perplexity_patience)


def _asked(part: Any, _run: Any) -> bool:
    """Whether pass@k is measured at all: otherwise how it would be is no part of a run."""
    return bool(part.rules)


def _in_batches(part: Any, run: Any) -> bool:
    """Whether the samples depend on which problems are answered together."""
    return _asked(part, run) and part.pass_at_k_backend == "hf"


@dataclass(frozen=True, kw_only=True)
class PassAtKStoppingConfig:
    """The pass@k at which SFT saves sweetspots, and how it is measured. Answers to problems of the
    validation pool are sampled only where there is a target or a patience rule.
    """

    pass_at_k_targets: tuple[float, ...] = setting((), before=())
    """Save a sweetspot when pass@k rises to each of these, between 0 and 1."""
    pass_at_k_patience: tuple[str, ...] = setting((), before=())
    """Also save one at a plateau, N:DELTA: it rose by less than DELTA in each of N evaluations."""
    pass_at_k: int = setting(1, hashed=_asked)
    """The k of pass@k; at most pass_at_k_samples."""
    pass_at_k_every: int = setting(20, hashed=_asked)
    """Optimizer steps between two measurements."""
    pass_at_k_prompts: int = setting(64, hashed=_asked)
    """Problems of the validation pool to answer; all if the pool is smaller."""
    pass_at_k_samples: int = setting(8, hashed=_asked)
    """Answers per problem."""
    pass_at_k_max_new_tokens: int = setting(512, hashed=_asked)
    """Longest answer in tokens."""
    pass_at_k_temperature: float = setting(0.7, hashed=_asked)
    """Sampling temperature."""
    pass_at_k_batch_size: int = setting(16, hashed=_in_batches)
    """Problems per batch of hf; changing it changes the samples."""
    pass_at_k_backend: str = setting("auto", hashed=_asked)
    """What samples the answers: hf the model in training itself, vllm an engine of its own beside
    it; auto takes vllm on CUDA where it is installed, and else hf.
    """
    use_persistent_vllm: bool = setting(True, hashed=False)
    """vllm: keep the engine between measurements; false starts one for each, whose memory the
    training has in between.
    """
    vllm_gpu_memory_utilization: float = setting(0.3, hashed=False)
    """vllm: share of the GPU's memory that the engine may use beside the training."""

    def __post_init__(self) -> None:
        targets = self.pass_at_k_targets
        inside = all(0 < target <= 1 for target in targets)
        require(self, "pass_at_k_targets", inside, "shares above 0 and at most 1, such as 0.3 0.5")
        _no_repeats("pass_at_k_targets", targets)
        _check_patience("pass_at_k_patience", self.pass_at_k_patience)
        for name in ("every", "prompts", "samples", "max_new_tokens", "batch_size"):
            name = f"pass_at_k_{name}"
            require(self, name, getattr(self, name) >= 1, "at least 1")
        most = self.pass_at_k_samples
        allowed = f"between 1 and pass_at_k_samples, {most}"
        require(self, "pass_at_k", 1 <= self.pass_at_k <= most, allowed)
        warm = 0.01 <= self.pass_at_k_temperature <= 2
        require(self, "pass_at_k_temperature", warm, "between 0.01 and 2: answers are drawn")
        share = 0 < self.vllm_gpu_memory_utilization < 1
        require(self, "vllm_gpu_memory_utilization", share, "above 0 and below 1")

    @property
    def measure(self) -> Measure:
        """pass@k as rules have it."""
        return pass_at(self.pass_at_k)

    @property
    def rules(self) -> list[Rule]:
        """The rules in the order given: targets, then patience."""
        return _rules(self.measure, self.pass_at_k_targets, self.pass_at_k_patience)


def _rules(measure: Measure, thresholds: Iterable[float], patience: Iterable[str]) -> list[Rule]:
    parsed = map(parse_patience, patience)
    return [
        *(Threshold(value=value, measure=measure) for value in thresholds),
        *(Patience(evaluations=n, change=change, measure=measure) for n, change in parsed),
    ]


def _check_patience(name: str, rules: Iterable[str]) -> None:
    parsed = [parse_patience(rule, name) for rule in rules]
    _no_repeats(name, [f"{n}:{change}" for n, change in parsed])


def parse_patience(rule: str, name: str = "perplexity_patience") -> tuple[int, float]:
    """Parse `2:0.02` into (evaluations, smallest change); UserError for anything else, which says
    that the setting `name` is wrong.
    """
    change = "INCREASE" if name.startswith("pass_at_k") else "DECREASE"
    match = re.fullmatch(r"(\d+):(\d*\.?\d+(?:[eE][-+]?\d+)?)", rule)
    if not match or int(match[1]) < 1 or float(match[2]) <= 0:
        raise UserError(
            f"{name} is '{rule}'; write EVALUATIONS:{change}, both above zero, for example 2:0.02."
        )
    return int(match[1]), float(match[2])


def check_thresholds(thresholds: Iterable[float]) -> None:
    """Raise UserError unless all thresholds are above 1, finite and distinct."""
    values = list(thresholds)
    for value in values:
        if not 1 < value < float("inf"):
            raise UserError(
                f"perplexity threshold {value} cannot be reached; thresholds are numbers above 1.0."
            )
    _no_repeats("perplexity_thresholds", values)


def _no_repeats(name: str, values: Iterable[Any]) -> None:
    seen = list(values)
    for value in seen:
        if seen.count(value) > 1:
            raise UserError(f"{name} names {value} more than once.")
