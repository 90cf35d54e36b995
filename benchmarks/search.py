"""Runs and regret of the search for the best split, beside the whole grid and random choice.

    python benchmarks/search.py
    python benchmarks/search.py --seeds 1000 1001 1002 --each

A seed is a score surface in the shapes of the study (tuning/search/simulated.py): rising with the
share of SFT from a cold start, then flat or falling, flatter for larger budgets. Each case is a
grid of 7 ratios; a run is a training with its evaluation, noisy by its prompts and its training.
Regret is what the true score of the chosen split lacks of the best of the grid, in points of
pass@1, the mean over the budgets of a case. `grid` runs everything and takes the highest measured
score; `random` takes the highest of as many runs as the search used, spread evenly over the
budgets, in 20 draws a surface. `prompts` is the share of the grid's evaluated prompts.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from tuning.search.arms import Arm, Result
from tuning.search.config import SearchConfig
from tuning.search.rounds import EXTEND, SCREEN, START, Round, Search, actions, decide
from tuning.search.simulated import Surface, grid

SEEDS = tuple(range(40))
AIM_RUNS, AIM_REGRET = 0.5, 1.0
BUDGETS = (300, 1000, 3000, 10000, 30000)
DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """A grid and how it is evaluated."""

    name: str
    arms: tuple[Arm, ...]
    prompts: int
    samples: int = 4


CASES = (
    *(
        Case(name="1 budget, 1 method", arms=grid((1000,), ("dpo",)), prompts=n)
        for n in (200, 500, 1000)
    ),
    *(
        Case(name="1 budget, 2 methods", arms=grid((1000,), ("dpo", "kto")), prompts=n)
        for n in (200, 1000)
    ),
    *(
        Case(name="5 budgets, 1 method", arms=grid(BUDGETS, ("dpo",)), prompts=n)
        for n in (200, 500, 1000)
    ),
    *(
        Case(name="5 budgets, 2 methods", arms=grid(BUDGETS, ("dpo", "kto")), prompts=n)
        for n in (200, 1000)
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One search on one surface."""

    runs: float
    """Share of the grid's runs."""
    prompts: float
    rounds: int
    regret: float
    grid: float
    random: tuple[float, ...]
    """Of each draw."""


def searched(search: Search, surface: Surface) -> list[Round]:
    """All rounds of a search."""
    rounds: list[Round] = []
    results: dict[Arm, Result] = {}
    arms = {arm.key: arm for arm in search.arms}
    first = math.ceil(search.config.first * surface.prompts)
    while not rounds or not rounds[-1].end:
        made = decide(search, rounds, results)
        for step in made.work:
            arm = arms[step.arm]
            results[arm] = surface.result(arm, first=first if step.action == SCREEN else None)
        rounds.append(made)
    return rounds


def run(case: Case, seed: int, config: SearchConfig) -> Outcome:
    """Search one surface, and compare."""
    surface = Surface(seed, prompts=case.prompts, samples=case.samples)
    search = Search(arms=case.arms, config=config)
    rounds = searched(search, surface)
    done = actions(rounds)
    full = [done[arm.key] in (START, EXTEND) for arm in case.arms if arm.key in done]
    chosen = {(b.model, b.size): b.best for b in rounds[-1].beliefs}
    everything = {arm: surface.result(arm) for arm in case.arms}
    return Outcome(
        runs=len(done) / len(case.arms),
        prompts=sum(1.0 if each else config.first for each in full) / len(case.arms),
        rounds=len(rounds),
        regret=_mean_regret(surface, case.arms, chosen),
        grid=_mean_regret(surface, case.arms, highest(everything)),
        random=at_random(surface, case.arms, everything, len(done), seed),
    )


def highest(results: Mapping[Arm, Result]) -> dict[tuple[str, int], str]:
    """The arm of the highest measured score of each contest."""
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for arm, result in results.items():
        score = result.full.score if result.full else 0.0
        if arm.contest not in best or score > best[arm.contest][0]:
            best[arm.contest] = (score, arm.key)
    return {contest: key for contest, (_, key) in best.items()}


def at_random(
    surface: Surface, arms: Sequence[Arm], results: Mapping[Arm, Result], runs: int, seed: int
) -> tuple[float, ...]:
    """The regrets of as many runs at random, as evenly over the contests as can be."""
    contests = list(dict.fromkeys(arm.contest for arm in arms))
    regrets = []
    for number in range(DRAWS):
        draw = np.random.default_rng([seed, number])
        chosen = {}
        shares = [runs // len(contests) + (n < runs % len(contests)) for n in range(len(contests))]
        for contest, share in zip(contests, draw.permutation(shares), strict=True):
            own = [arm for arm in arms if arm.contest == contest]
            some = draw.choice(len(own), size=max(1, min(share, len(own))), replace=False)
            chosen |= highest({own[n]: results[own[n]] for n in some})
        regrets.append(_mean_regret(surface, arms, chosen))
    return tuple(regrets)


def _mean_regret(
    surface: Surface, arms: Sequence[Arm], chosen: Mapping[tuple[str, int], str]
) -> float:
    """In points of pass@1, over all contests."""
    truth = {arm.key: surface.truth(arm) for arm in arms}
    regrets = []
    for contest in dict.fromkeys(arm.contest for arm in arms):
        own = [truth[arm.key] for arm in arms if arm.contest == contest]
        got = truth[chosen[contest]] if contest in chosen else min(own)
        regrets.append(100 * (max(own) - got))
    return statistics.fmean(regrets)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="default: 0 to 39")
    parser.add_argument("--each", action="store_true", help="also a line for each surface")
    parser.add_argument("--max_runs", type=int, help="as --search_max_runs")
    parser.add_argument("--first", type=float, default=0.25, help="as --search_first")
    args = parser.parse_args()
    config = SearchConfig(max_runs=args.max_runs, first=args.first)
    print(
        f"{len(args.seeds)} surfaces a case; regret in points of pass@1, median (90th percentile)"
    )
    print(f"{'case':<22}{'prompts':>8}{'runs':>7}{'rounds':>8}{'prompts':>9}"
          f"{'search':>15}{'grid':>15}{'random':>15}")  # fmt: skip
    holds = True
    for case in CASES:
        found = [run(case, seed, config) for seed in tqdm(args.seeds, leave=False, desc=case.name)]
        if args.each:
            for seed, one in zip(args.seeds, found, strict=True):
                print(f"  seed {seed}: {one}")
        runs = statistics.fmean(one.runs for one in found)
        shown = ([o.regret for o in found], [o.grid for o in found])
        random = [regret for one in found for regret in one.random]
        columns = "".join(f"{spread(each):>15}" for each in (*shown, random))
        print(
            f"{case.name:<22}{case.prompts:>8}{runs:>7.0%}"
            f"{statistics.fmean(one.rounds for one in found):>8.1f}"
            f"{statistics.fmean(one.prompts for one in found):>9.0%}{columns}",
            flush=True,
        )
        median = statistics.median(one.regret for one in found)
        holds = holds and runs <= AIM_RUNS and median <= AIM_REGRET
    aim = f"at most {AIM_RUNS:.0%} of the runs at a median regret of at most {AIM_REGRET:.0f}"
    print(f"aim, {aim}: {'met' if holds else 'MISSED'}")


def spread(values: Sequence[float]) -> str:
    """`0.31 (1.20)`: the median and the 90th percentile."""
    return f"{np.median(values):.2f} ({np.percentile(values, 90):.2f})"


if __name__ == "__main__":
    main()
