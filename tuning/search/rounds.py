"""The decisions of a search: which arms a round starts, which go on to all prompts, which stop, and
when the search ends.

`decide()` is a pure function of the arms, the settings, the rounds so far and the results on disk,
so that a search which was killed anywhere continues with the decisions that it would have made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuning.search.arms import Arm, Contest, Measure, Result
from tuning.search.config import SearchConfig
from tuning.search.surrogate import Array, Kernel, Posterior, on_arms, posterior, prior_draws

START, SCREEN, EXTEND, STOP = "start", "screen", "extend", "stop"
"""Train and evaluate; train and evaluate on the first share of the prompts; evaluate on the rest of
them; leave it at the first share."""
WEAK = 0.1
"""Chance of being better than the best, below which an arm is stopped."""
SURE = 0.95
"""Probability with which the best must be known within its interval."""
PRIOR = Kernel(amplitude=0.1, ratio=0.5, size=3.0, method=1.5, noise=0.01)
"""What is assumed before anything is measured."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a round does with one arm, and why."""

    arm: str
    """`Arm.key`."""
    action: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Belief:
    """What is thought of a contest when a round is decided."""

    model: str
    size: int
    best: str
    """The key of the arm that is expected to score highest, of those evaluated on all prompts."""
    score: float
    low: float
    high: float
    """Its expected score, with 95% of the draws."""
    within: float
    """Half the 95% interval of its measured score."""
    sure: float
    """Probability that no other way to spend the budget is better by more than that."""

    @property
    def settled(self) -> bool:
        """Whether the best is known within its interval."""
        return self.sure >= SURE


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is decided at one time; the last one has the reason why the search ends."""

    steps: tuple[Step, ...] = ()
    beliefs: tuple[Belief, ...] = ()
    end: str = ""

    @property
    def work(self) -> tuple[Step, ...]:
        """The steps that start anything."""
        return tuple(step for step in self.steps if step.action != STOP)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The arms and the settings of a search, with its defaults filled in."""

    arms: tuple[Arm, ...]
    config: SearchConfig
    runs_of_arm: int = 1
    """Runs that one arm takes: one a seed."""

    @property
    def contests(self) -> list[Contest]:
        """The models and budgets, in order."""
        return list(dict.fromkeys(arm.contest for arm in self.arms))

    @property
    def max_arms(self) -> int:
        """How many arms may be started."""
        if self.config.max_runs is None:
            return max(2, len(self.arms) // 2)
        return max(1, self.config.max_runs // self.runs_of_arm)

    @property
    def batch(self) -> int:
        """How many arms a round starts at most."""
        if self.config.batch is None:
            return max(2, len(self.contests))
        return max(1, self.config.batch // self.runs_of_arm)


def actions(rounds: Iterable[Round]) -> dict[str, str]:
    """{arm: the last action that was decided for it}."""
    return {step.arm: step.action for each in rounds for step in each.steps}


def decide(search: Search, rounds: Sequence[Round], results: Mapping[Arm, Result]) -> Round:
    """The next round."""
    done = actions(rounds)
    started = [arm for arm in search.arms if arm.key in done]
    measures = {a: m for a in started if (r := results.get(a)) and (m := r.best)}
    if rounds and not measures:
        return Round(end="no run that was started has a result")
    if not rounds:
        return Round(steps=tuple(_first(search)))
    found = posterior(search.arms, measures)
    full = {a: r.full for a in started if (r := results.get(a)) and r.full}
    best = {c: b for c in search.contests if (b := _best(found, full, c))}
    steps = _verdicts(started, done, results, found, best)
    beliefs = tuple(_belief(found, full, arm) for arm in best.values())
    settled = {(b.model, b.size) for b in beliefs if b.settled}
    room = search.max_arms - len(started)
    left = [a for a in search.arms if a.key not in done and a.contest not in settled]
    going = any(step.action == EXTEND for step in steps)
    if room > 0 and left:
        steps += _next(search, found, started, left, best, min(room, search.batch))
    made = Round(steps=tuple(steps), beliefs=beliefs)
    if made.work or going:
        return made
    return Round(steps=made.steps, beliefs=beliefs, end=_why_over(search, settled, left))


def _first(search: Search) -> list[Step]:
    """Arms that tell the most about the others: each is the one after which the least variance is
    left, by the prior alone, of those that may be the best.
    """
    wanted = min(max(search.batch, len(search.contests)), search.max_arms, len(search.arms))
    left, weights = on_arms(PRIOR, search.arms).covariance, _chances(search)
    chosen: list[int] = []
    for _ in range(wanted):
        gains = (weights[:, None] * left**2).sum(axis=0) / (np.diag(left) + 1e-3)
        gains[chosen] = -1.0
        at = int(np.argmax(gains))
        chosen.append(at)
        left = left - np.outer(left[:, at], left[at]) / (left[at, at] + 1e-3)
    why = "tells the most about the others"
    return [Step(arm=search.arms[at].key, action=START, why=why) for at in chosen]


def _chances(search: Search) -> Array:
    """The chance of each arm to be the best of its contest, before anything is measured."""
    found = prior_draws(PRIOR, search.arms)
    best = [found.of(arm) >= _most(found, arm.contest) for arm in search.arms]
    return np.mean(best, axis=1)


def _best(found: Posterior, full: Mapping[Arm, Measure], contest: Contest) -> Arm | None:
    """Of the arms of a contest that were evaluated on all prompts, the one expected to score
    highest.
    """
    return max((arm for arm in full if arm.contest == contest), key=found.mean, default=None)


def _verdicts(
    started: Sequence[Arm],
    done: Mapping[str, str],
    results: Mapping[Arm, Result],
    found: Posterior,
    best: Mapping[Contest, Arm],
) -> list[Step]:
    """What becomes of the arms that have seen the first share of the prompts."""
    steps = []
    for arm in started:
        result = results.get(arm, Result())
        if done[arm.key] != SCREEN or result.best is None:
            continue
        if result.first is None:
            steps.append(Step(arm=arm.key, action=EXTEND, why="all its answers are there already"))
            continue
        if (ahead := best.get(arm.contest)) is None:
            steps.append(Step(arm=arm.key, action=EXTEND, why="nothing to compare it with yet"))
            continue
        chance = float((found.of(arm) > found.of(ahead)).mean())
        seen = f"{result.first.score:.3f} on the first {result.first.prompts} prompts"
        why = f"{seen}: better than {ahead.key} with a chance of {chance:.0%}"
        action = STOP if chance < WEAK else EXTEND
        steps.append(Step(arm=arm.key, action=action, why=why))
    return steps


def _belief(found: Posterior, full: Mapping[Arm, Measure], arm: Arm) -> Belief:
    """What is thought of the best arm of a contest."""
    own = found.of(arm)
    within = full[arm].half_width
    sure = float((_most(found, arm.contest) - own <= within).mean())
    low, high = np.percentile(own, [2.5, 97.5])
    return Belief(
        model=arm.model,
        size=arm.size,
        best=arm.key,
        score=round(float(own.mean()), 6),
        low=round(float(low), 6),
        high=round(float(high), 6),
        within=round(within, 6),
        sure=round(sure, 6),
    )


def _most(found: Posterior, contest: Contest) -> Array:
    """The highest score of a contest in each draw."""
    own = [arm.contest == contest for arm in found.arms]
    most: Array = found.draws[:, own].max(axis=1)
    return most


def _next(
    search: Search,
    found: Posterior,
    started: Sequence[Arm],
    left: Sequence[Arm],
    best: Mapping[Contest, Arm],
    wanted: int,
) -> list[Step]:
    """The arms that raise the best known score the most, one after the other, so that those of a
    round do not ask the same (the batch form of expected improvement, over joint draws).
    """
    top = {}
    for contest in search.contests:
        own = [found.of(arm) for arm in started if arm.contest == contest]
        top[contest] = np.max(own, axis=0) if own else np.zeros(len(found.draws))
    steps = []
    for _ in range(min(wanted, len(left))):
        gains = {a: float(np.maximum(found.of(a) - top[a.contest], 0).mean()) for a in left}
        arm = max(gains, key=lambda a: gains[a])
        top[arm.contest] = np.maximum(top[arm.contest], found.of(arm))
        left = [other for other in left if other != arm]
        low, high = np.percentile(found.of(arm), [2.5, 97.5])
        why = f"expected at {found.mean(arm):.3f} [{low:.3f}, {high:.3f}]"
        screened = search.config.first < 1 and arm.contest in best
        steps.append(Step(arm=arm.key, action=SCREEN if screened else START, why=why))
    return steps


def _why_over(search: Search, settled: set[Contest], left: Sequence[Arm]) -> str:
    """Why nothing more is started."""
    if len(settled) == len(search.contests):
        return "the best split of every budget is known within its interval"
    if not left:
        return "every split was run"
    return f"the cap of {search.max_arms * search.runs_of_arm} runs is reached"
