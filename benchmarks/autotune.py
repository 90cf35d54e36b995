"""Trials and regret of the autotuner's strategies on simulated devices, beside two other searches.

    python benchmarks/autotune.py
    python benchmarks/autotune.py --seeds 1 2 3 --each

A seed is a training on devices with hidden constants (tuning/autotune/simulated.py). Regret is the
throughput that is lost against the fastest candidate within the limit, found by evaluating all of
them without noise; a search that finds nothing it may use loses everything. `unsafe` are winners
that use more than 0.9 of the memory, whose regret counts as none. Beside:

- `ZeRO stages`: what DeepSpeed's autotuner does in its default order: a stage of sharding after the
  other, in each the micro-batch doubled while it gets faster; the rest as the user set it.
- `binary`: the largest micro-batch that does not run out of memory, as Lightning and accelerate
  find it: doubled until it fails, then halved intervals. The rest is not searched.

For `predict`: how far memory and time of the trials were from their predictions, and the surfaces
in which any candidate was said to fit, before any of the trials, that runs out of memory, or that
is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from tuning.autotune.cost import CostModel
from tuning.autotune.heuristic import size_of
from tuning.autotune.observation import Observation
from tuning.autotune.score import LIMIT, Scorer
from tuning.autotune.search import Budget, search
from tuning.autotune.simulated import Surface
from tuning.autotune.space import Candidate
from tuning.autotune.strategies import STRATEGIES, Strategy, strategy

SEEDS = tuple(range(40))
AIM_TRIALS, AIM_MEDIAN, AIM_WORST, AIM_FITS = 5, 0.03, 0.10, 0.95


@dataclass(kw_only=True)
class Outcome:
    """A search on a surface."""

    trials: int
    regret: float
    unsafe: bool
    failed: int
    """Trials that did not run."""


@dataclass(kw_only=True)
class Claims:
    """What the cost model said would fit on a surface, before each trial, and does not."""

    out_of_memory: set[Candidate] = field(default_factory=set)
    above_limit: set[Candidate] = field(default_factory=set)


class Watched:
    """A strategy whose model's claims are compared with the truth whenever it is asked."""

    def __init__(self, inner: Strategy, model: CostModel, surface: Surface) -> None:
        self.inner, self.model, self.surface = inner, model, surface
        self.claims = Claims()

    def ask(self) -> Candidate | None:
        """Ask, after noting what the model claims."""
        most = LIMIT * self.surface.device.capacity
        for candidate, predicted in self.model.predictions().items():
            truth = self.surface.truths[candidate]
            if predicted.fits and truth.out_of_memory:
                self.claims.out_of_memory.add(candidate)
            if predicted.fits and (truth.out_of_memory or truth.peak_bytes > most):
                self.claims.above_limit.add(candidate)
        return self.inner.ask()

    def tell(self, observation: Observation) -> None:
        """Tell."""
        self.inner.tell(observation)

    def error(self) -> str | None:
        """Of the strategy."""
        return self.inner.error()


def of_strategy(name: str, seed: int) -> tuple[Outcome, Claims]:
    """A search by a strategy of ours."""
    surface = Surface(seed)
    scorer = Scorer(capacity=surface.device.capacity)
    model = CostModel(surface.workload, surface.device, surface.space)
    watched = Watched(strategy(name, model, scorer, seed=seed), model, surface)
    most = len(surface.space.candidates) if name == "grid" else 15
    budget = Budget(seconds=1e9, max_iterations=most)
    found = search(surface.space, watched, surface.trial, scorer=scorer, budget=budget)
    return judged(surface, found.winner, found.observations), watched.claims


def judged(
    surface: Surface, winner: Candidate | None, observations: Sequence[Observation]
) -> Outcome:
    """How good a winner is."""
    failed = sum(not o.ok for o in observations)
    if winner is None:
        return Outcome(trials=len(observations), regret=1.0, unsafe=False, failed=failed)
    truth = surface.truths[winner]
    return Outcome(
        trials=len(observations),
        regret=max(0.0, 1 - truth.tokens_per_second / surface.best),
        unsafe=winner not in surface.safe,
        failed=failed,
    )


def zero_stages(seed: int) -> Outcome:
    """Stage by stage, in each the micro-batch doubled while it gets faster."""
    surface = Surface(seed)
    best: Observation | None = None
    seen: list[Observation] = []
    for sharding in ("none", "full_shard"):
        last = 0.0
        for candidate in doubled(surface, sharding):
            observation = surface.trial(candidate)
            seen.append(observation)
            speed = observation.tokens_per_second or 0.0
            if best is None or speed > (best.tokens_per_second or 0.0):
                best = observation if observation.ok else best
            if speed <= last:
                break
            last = speed
    return judged(surface, best.candidate if best else None, seen)


def doubled(surface: Surface, sharding: str) -> list[Candidate]:
    """Sizes of a stage, each at least twice the one before; checkpointing as is usual, on."""
    found: list[Candidate] = []
    for candidate in plain(surface, sharding):
        if not found or size_of(candidate) >= 2 * size_of(found[-1]):
            found.append(candidate)
    return found


def plain(surface: Surface, sharding: str) -> list[Candidate]:
    """Candidates of a sharding with everything but the size at its default."""
    found = [
        c
        for c in surface.space.candidates
        if c.sharding == sharding
        and c.gradient_checkpointing
        and not c.use_compile
        and c.sep_size == 1
    ]
    return sorted(found, key=size_of)


def binary(seed: int) -> Outcome:
    """The largest micro-batch that does not run out of memory."""
    surface = Surface(seed)
    sharding = "full_shard" if surface.device.count > 1 else "none"
    sizes = plain(surface, sharding)
    seen: list[Observation] = []

    def runs(index: int) -> bool:
        seen.append(surface.trial(sizes[index]))
        return seen[-1].ok

    low, high = -1, len(sizes)
    for index in range(len(sizes)):
        if not runs(index):
            high = index
            break
        low = index
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return judged(surface, sizes[low] if low >= 0 else None, seen)


def table(rows: dict[str, list[Outcome]]) -> None:
    """A line a search."""
    print(f"{'':12} {'trials':>18} {'failed':>8} {'regret':>28} {'unsafe':>8}")
    print(f"{'':12} {'median  p90  most':>18} {'a search':>8} {'median     p90   worst':>28}")
    for name, outcomes in rows.items():
        trials = quantiles([o.trials for o in outcomes])
        regret = quantiles([100 * o.regret for o in outcomes])
        failed = statistics.fmean(o.failed for o in outcomes)
        print(
            f"{name:12} {trials[0]:8.0f} {trials[1]:4.0f} {trials[2]:4.0f} {failed:8.1f}"
            f" {regret[0]:13.1f}% {regret[1]:6.1f}% {regret[2]:5.1f}%"
            f" {sum(o.unsafe for o in outcomes):8}"
        )


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 90th percentile (the smallest that 9 in 10 do not exceed), and largest."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[-(-9 * len(ordered) // 10) - 1], ordered[-1]


def aims(outcomes: Sequence[Outcome], claims: Sequence[Claims]) -> None:
    """What `predict` aims at, and whether it got there."""
    _, _, trials = quantiles([o.trials for o in outcomes])
    median, _, worst = quantiles([o.regret for o in outcomes])
    n = len(claims)
    fits = sum(not c.out_of_memory for c in claims) / n
    limit = sum(not c.above_limit for c in claims) / n
    for what, got, aim, met in (
        ("most trials", f"{trials}", f"{AIM_TRIALS}", trials <= AIM_TRIALS),
        ("median regret", f"{median:.1%}", f"{AIM_MEDIAN:.0%}", median <= AIM_MEDIAN),
        ("worst regret", f"{worst:.1%}", f"{AIM_WORST:.0%}", worst <= AIM_WORST),
        ("surfaces where all that is predicted to fit does", f"{fits:.0%}", "95%", fits >= 0.95),
        ("  and is within the limit, too", f"{limit:.0%}", "95%", limit >= 0.95),
    ):
        print(f"  {what}: {got} (aim: {aim}){'' if met else ', MISSED'}")


def main() -> None:
    """Run every search on every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--each", action="store_true", help="a line a surface for predict")
    args = parser.parse_args()
    rows: dict[str, list[Outcome]] = {name: [] for name in args.strategies}
    others: dict[str, Callable[[int], Outcome]] = {"ZeRO stages": zero_stages, "binary": binary}
    rows |= {name: [] for name in others}
    claims = []
    for seed in tqdm(args.seeds, unit="surface"):
        for name in args.strategies:
            outcome, claimed = of_strategy(name, seed)
            rows[name].append(outcome)
            if name == "predict":
                claims.append(claimed)
                if args.each:
                    tqdm.write(line_of(seed, outcome, claimed))
        for name, other in others.items():
            rows[name].append(other(seed))
    print(f"{len(args.seeds)} simulated surfaces")
    table(rows)
    if claims:
        print("predict")
        aims(rows["predict"], claims)


def line_of(seed: int, outcome: Outcome, claims: Claims) -> str:
    """A surface and what `predict` made of it."""
    return (
        f"{seed:5}: {outcome.trials} trials ({outcome.failed} failed), regret {outcome.regret:6.1%}"
        f", {len(claims.out_of_memory)} + {len(claims.above_limit)} wrong claims; {Surface(seed)}"
    )


if __name__ == "__main__":
    main()
