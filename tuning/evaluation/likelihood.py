"""What the likelihoods of fixed answers say of a model: perplexity, and the implicit reward of a
preference-tuned one; and what a training changed. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuning.evaluation.intervals import (
    Interval,
    mean_interval,
    normal_interval,
    paired_difference,
    ratio_error,
)
from tuning.evaluation.pass_at_k import first_attempts

Answers = Mapping[str, Mapping[str, Sequence[float]]]
"""Of each column of answers `nll`, the negative log-likelihood of each in nats, and `tokens`."""


def described(
    policy: Mapping[str, Answers],
    reference: Mapping[str, Answers],
    beta: float,
    scores: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a model is, by its likelihoods on each pool, by those of what it was trained from, and
    by its scores.json; None for what was not measured.
    """
    return {
        "score": told_score(scores) if scores else None,
        "perplexity": perplexity(policy["validation"]) if "validation" in policy else None,
        "reward": (
            implicit_reward(policy["preference"], reference["preference"], beta)
            if "preference" in policy
            else None
        ),
    }


def changed(
    before: Mapping[str, Answers],
    after: Mapping[str, Answers],
    scores_before: Mapping[str, Any] | None,
    scores_after: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a training changed: a difference of scores, a factor of perplexity."""
    pool = "validation"
    return {
        "score": score_change(scores_before, scores_after),
        "perplexity": perplexity_change(before[pool], after[pool]) if pool in before else None,
    }


def perplexity(answers: Answers) -> dict[str, Any]:
    """The token-level perplexity of completions with its 95% interval over rows, which is that of
    the mean loss of a token: exp of the ratio estimator's.
    """
    nll, tokens = (np.asarray(answers["completion"][name], float) for name in ("nll", "tokens"))
    mean, error = float(nll.sum() / tokens.sum()), ratio_error(nll, tokens)
    return {
        **_told(Interval(estimate=_exp(mean), low=_exp(mean - error), high=_exp(mean + error))),
        "rows": int(nll.size),
        "tokens": int(tokens.sum()),
    }


def perplexity_change(before: Answers, after: Answers) -> dict[str, float]:
    """The factor by which training changed the perplexity of the same rows, with its 95% interval:
    exp of the mean change of a token's loss.
    """
    first, last, tokens = (
        np.asarray(side["completion"][name], float)
        for side, name in ((before, "nll"), (after, "nll"), (before, "tokens"))
    )
    mean = float((last - first).sum() / tokens.sum())
    error = ratio_error(last - first, tokens)
    return _told(Interval(estimate=_exp(mean), low=_exp(mean - error), high=_exp(mean + error)))


def told_score(scores: Mapping[str, Any]) -> dict[str, Any]:
    """pass@1 of scores.json with its interval, and on how much it rests."""
    return {**scores["pass_at_k"]["1"], "prompts": scores["prompts"], "samples": scores["samples"]}


def score_change(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, float] | None:
    """The change of pass@1 on the same prompts, paired; None where one is unknown, or they are not
    as many."""
    if before is None or after is None:
        return None
    ours, theirs = first_attempts(after), first_attempts(before)
    return _told(paired_difference(ours, theirs)) if len(ours) == len(theirs) else None


def implicit_reward(policy: Answers, reference: Answers, beta: float) -> dict[str, Any]:
    """How often the implicit reward of DPO, beta * (log pi - log pi_ref) of a whole answer
    (Rafailov et al. 2023, section 5), is higher for the chosen answer than for the rejected one,
    with its 95% interval over pairs; a tie counts as half.

    Rewards are sums over tokens, so what a policy learnt of lengths counts too: `chosen_longer` is
    the share of pairs whose chosen answer is the longer one, `longer_preferred` the share, of those
    of different lengths, in which the longer one has the higher reward.
    """
    rewards = {
        name: beta * (np.asarray(reference[name]["nll"]) - np.asarray(policy[name]["nll"]))
        for name in ("chosen", "rejected")
    }
    margins = rewards["chosen"] - rewards["rejected"]
    chosen, rejected = (np.asarray(policy[name]["tokens"]) for name in ("chosen", "rejected"))
    longer = np.sign(chosen - rejected)
    differ = longer != 0
    return {
        **_told(mean_interval(_wins(margins))),
        "margin": _told(normal_interval(margins)),
        "beta": beta,
        "pairs": int(margins.size),
        "chosen_longer": round(float((longer > 0).mean()), 6),
        "longer_preferred": (
            round(float(_wins(margins[differ] * longer[differ]).mean()), 6)
            if differ.any()
            else None
        ),
    }


def _wins(margins: np.ndarray) -> np.ndarray:
    """1 for a margin above zero, 0.5 for none."""
    return (np.sign(margins) + 1) / 2


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _told(interval: Interval) -> dict[str, float]:
    return {
        "estimate": round(interval.estimate, 6),
        "low": round(interval.low, 6),
        "high": round(interval.high, 6),
    }
