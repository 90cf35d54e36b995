"""The sweetspot rules of an SFT run in the one form in which they are hashed, however they were
written: in the order in which they are crossed, numbers as labels have them, engines by their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from tuning.evaluation.generators import AUTO, GENERATORS, automatic
from tuning.flags import build
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import number
from tuning.sweetspots.config import PassAtKStoppingConfig, PerplexityConfig, parse_patience

_PERPLEXITY = ("perplexity_thresholds", "perplexity_patience")
_PASS_AT_K = ("pass_at_k_targets", "pass_at_k_patience", "pass_at_k")
"""What labels of sweetspots show."""
Rules = TypeVar("Rules", PerplexityConfig, PassAtKStoppingConfig)


def perplexity_rules(chosen: Mapping[str, Any]) -> PerplexityConfig:
    """The perplexity rules among settings, thresholds from high to low."""
    made = build(PerplexityConfig, chosen)
    return replace(
        made,
        perplexity_thresholds=tuple(sorted(made.perplexity_thresholds, reverse=True)),
        perplexity_patience=_written(made.perplexity_patience),
    )


def pass_at_k_rules(
    chosen: Mapping[str, Any], given: Mapping[str, Any], cuda: bool | None = None
) -> PassAtKStoppingConfig:
    """The pass@k rules among settings, targets from low to high.

    `cuda`: whether the run will train on CUDA; None: as this machine has it. Raises UserError for
    a setting, of those `given` by a person, of a pass@k that is not measured.
    """
    made = build(PassAtKStoppingConfig, chosen)
    names = (f.name for f in fields(made) if f.name in given and f.name not in _PASS_AT_K[:2])
    if not made.rules and (lost := next(names, None)):
        raise UserError(
            f"{lost} says how pass@k is measured during SFT, which nothing asks for; give "
            "--pass_at_k_targets or --pass_at_k_patience."
        )
    backend = choose("pass_at_k_backend", made.pass_at_k_backend, (AUTO, *GENERATORS))
    return replace(
        made,
        pass_at_k_targets=tuple(sorted(made.pass_at_k_targets)),
        pass_at_k_patience=_written(made.pass_at_k_patience),
        pass_at_k_backend=automatic(cuda) if backend == AUTO else backend,
    )


def with_rules_of(ruled: Rules, settings: Rules) -> Rules:
    """Settings of a measure with the rules of others."""
    names = _PERPLEXITY if isinstance(settings, PerplexityConfig) else _PASS_AT_K
    return replace(settings, **{name: getattr(ruled, name) for name in names})


def _written(patience: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{n}:{number(change)}" for n, change in map(parse_patience, patience))
