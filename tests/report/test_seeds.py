"""Several seeds in a report: one row a way, both errors, what one seed is worth; and the tables of
a grid of budgets.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_experiment import fake, fake_budget, wanted

from tuning.experiments.merge import merged
from tuning.experiments.sweetspot import sweetspot_plan
from tuning.report.answer import answer
from tuning.report.build import write_report
from tuning.report.caveats import caveats
from tuning.report.comparisons import compare, weighed
from tuning.report.grid import best_splits, budget_for, needed, recipes, targets
from tuning.report.labels import Labels
from tuning.report.read import gather
from tuning.report.rows import Row, Scores, of_role
from tuning.report.seeds import trust, united

pytestmark = pytest.mark.unit

PROMPTS = 200
GRID = {
    "train_sizes": (500, 1000, 2000), "sft_ratios": ("0", "0.5", "1"), "pft_methods": ("dpo",),
    "n_seeds": 3,
}  # fmt: skip


def scored(seed: int, level: float, between: float = 0.0, role: str = "reference_sft") -> Row:
    """A row of one seed, whose prompts are those of every other."""
    rng = np.random.default_rng(1000 + seed)
    ease = np.random.default_rng(7).normal(0, 2.0, PROMPTS)
    chance = 1 / (1 + np.exp(-(level + ease + rng.normal(0, between))))
    correct = rng.binomial(4, chance)
    mean = float(correct.mean() / 4)
    scores = Scores(
        prompts=PROMPTS, samples=4, pass_at_k={1: (mean, mean, mean)},
        correct=tuple(map(int, correct)),
    )  # fmt: skip
    return Row(
        stage_name=f"{role}-{seed}", run_name=f"{role}-{seed}", role=role, state="done", note="",
        config_hash="", model="m", seed=seed, train_size=100, total_budget=100, scores=scores,
    )  # fmt: skip


def test_seeds_become_one_row_with_the_mean_and_both_errors() -> None:
    rows = [scored(seed, 0.0, between=0.4) for seed in (1, 2, 3)]
    (way,) = united(rows)
    assert way.seed is None and way.seeds == (1, 2, 3) and way.scores
    singles = [row.scores.first[0] for row in rows if row.scores]
    assert way.scores.first[0] == pytest.approx(np.mean(singles))
    assert way.scores.seed_error == pytest.approx(np.std(singles, ddof=1) / 3**0.5)
    assert way.scores.prompt_error and way.scores.first[1] < min(singles)
    assert len(way.scores.by_seed) == 3 and way.scores.samples == 12


def test_what_differs_in_more_than_the_seed_stays_apart() -> None:
    first, second = scored(1, 0.0), scored(2, 0.0)
    for change in ({"variant": "other"}, {"train_size": 200}, {"total_budget": 7}, {"model": "n"}):
        assert len(united([first, replace(second, **change)])) == 2
    assert united([first, replace(second, seed=1)]) == [first, replace(second, seed=1)]
    assert second.scores
    fewer = replace(second, scores=replace(second.scores, correct=second.scores.correct[:50]))
    assert united([first, fewer]) == [first, fewer]


def test_a_seed_without_a_result_leaves_the_others() -> None:
    rows = [scored(1, 0.0), scored(2, 0.0), replace(scored(3, 0.0), scores=None, state="failed")]
    (way,) = united(rows)
    assert way.seeds == (1, 2) and way.state == "done"
    assert way.note.startswith("seed 3: ")
    assert "not of all seeds" in " ".join(caveats([way], [], {}, Labels.of([way])))


def test_the_spread_of_the_seeds_is_estimated_without_the_noise_of_prompts() -> None:
    def found(between: float) -> float:
        rows = []
        for way in range(12):
            of = [scored(10 * way + seed, 0.2 * way - 1, between) for seed in range(3)]
            rows += [replace(row, train_size=way) for row in of]
        (every,) = trust(united(rows))
        assert every.ways == 12 and every.seeds == 36 and every.prompts == PROMPTS
        assert every.between_low <= every.between <= every.between_high
        assert every.one >= every.prompts_only
        return every.between

    assert found(0.0) < 0.012
    assert 0.03 < found(0.4) < 0.09
    assert trust([scored(1, 0.0)]) == []


def test_comparisons_pair_the_seeds_and_correct_for_their_number() -> None:
    ours = [scored(seed, 0.6, 0.1) for seed in (1, 2, 3)]
    theirs = [scored(seed, 0.0, 0.1, role="reference_pt") for seed in (3, 2, 1)]
    better, worse = united([*ours, *theirs])
    ((alone,),) = weighed([[("base", better, worse)]])
    assert (alone.sign, alone.seeds, alone.together) == (1, 3, 1)
    (together,) = weighed([[("base", better, worse), *[("base", worse, worse)] * 5]])
    assert [c.sign for c in together] == [1, 0, 0, 0, 0, 0]
    assert together[0].corrected == pytest.approx(6 * together[0].difference.p)

    def pairs(row: Row) -> int:
        ((found,),) = weighed([[("base", better, row)]])
        return found.seeds

    assert pairs(ours[0]) == 1
    base = replace(ours[0], role="base", seed=5)
    assert pairs(base) == 3
    two = [scored(seed, 0.0, role="pt") for seed in (2, 3)]
    assert pairs(united(two)[0]) == 2


def test_a_difference_that_many_comparisons_turn_up_by_chance_is_not_called_one() -> None:
    ours, theirs = scored(1, 0.0), scored(2, 0.22)
    ((alone,),) = weighed([[("base", theirs, ours)]])
    assert alone.apart and alone.sign == 1
    many = weighed([[("base", theirs, ours), *[("base", ours, ours)] * 60]])[0][0]
    assert many.apart and many.sign == 0
    assert many.verdict == "not after correction for 61 comparisons"


def test_a_difference_has_one_interval_whatever_asks_for_it(home: Path) -> None:
    made = fake_budget(home, **GRID)
    made.write()
    found = compare(united(gather(made.plan, home)))
    ranked = {
        (c.ours.run_name, c.theirs.run_name): c.difference
        for pairs in found.rankings.values()
        for c in pairs
    }
    both = 0
    for c in found.questions:
        names = (c.ours.run_name, c.theirs.run_name)
        if names in ranked:
            assert c.difference == ranked[names]
        elif names[::-1] in ranked:
            other = ranked[names[::-1]]
            assert (c.difference.low, c.difference.high) == (-other.high, -other.low)
        both += names in ranked or names[::-1] in ranked
    assert both == len(found.about("whole_budget")) > 0


def test_the_report_of_a_grid_with_seeds(home: Path) -> None:
    made = fake_budget(home, **GRID)
    made.write()
    told = write_report(made.plan, home)
    folder = home / "outputs/reports/trial"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "How far one seed can be trusted", "The best split of each budget",
        "Every run with its seed", "The budget that a score takes",
        "over test prompts and seeds together", "by Holm",
        'aria-label="pass@1 over the share of SFT"', 'aria-label="pass@1 over the budget"',
    ):  # fmt: skip
        assert text in page
    assert "tiny_sft-arith-1000 ×3" in told and "seed-43" not in told.partition("report:")[0]
    with (folder / "ways.csv").open(encoding="utf-8") as file:
        ways = list(csv.DictReader(file))
    with (folder / "results.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == len(made.plan.stages) - 1 == 1 + 3 * (len(ways) - 1)
    tuned = [way for way in ways if way["stage"] == "pt"]
    assert {way["seeds"] for way in tuned} == {"42 43 44"}
    assert all(float(way["seed_error"]) > 0 and float(way["prompt_error"]) > 0 for way in tuned)
    assert all(int(way["total_tokens"]) > int(way["train_tokens"]) for way in tuned)


def test_seeds_of_forks_are_one_way_from_one_sweetspot(home: Path) -> None:
    plans = [sweetspot_plan(wanted(thresholds=(2.0,), seed=seed)) for seed in (42, 43, 44)]
    made = fake(home)
    made.plan = merged(plans, "trial")
    made.write()
    ways = united(gather(made.plan, home))
    (fork,) = of_role(ways, "fork")
    assert fork.seeds == (42, 43, 44)
    (found,) = [c for c in compare(ways).about("whole_budget") if c.ours is fork]
    assert found.seeds == 3


def test_the_budget_for_a_score_is_read_between_the_budgets_that_were_run() -> None:
    curve = [(500, (0.2, 0.1, 0.3)), (1000, (0.4, 0.3, 0.5)), (4000, (0.8, 0.7, 0.9))]
    assert budget_for(curve, 0.4) == "1,000 [710, 1,400]"
    assert budget_for(curve, 0.15) == "≤ 500 [≤ 500, 590]"
    assert budget_for(curve, 0.05) == "≤ 500"
    assert budget_for(curve, 0.85) == "> 4,000 [3,400, –]"
    assert budget_for(curve, 0.95) == "> 4,000"


def test_a_grid_of_budgets_has_its_best_splits_and_what_scores_take(home: Path) -> None:
    made = fake_budget(home, **GRID)
    made.write()
    ways = united(gather(made.plan, home))
    labels = Labels.of(ways)
    best = best_splits(ways, compare(ways), labels)
    assert [line.budget for line in best] == ["500 examples", "1,000 examples", "2,000 examples"]
    assert {line.split for line in best} == {"all on SFT"}
    assert {(r.method, r.ratio) for r in recipes(ways)} == {("dpo", 0), ("dpo", 0.5), (None, 1)}
    table = needed(ways, labels)
    assert table and len(table.targets) == len(targets(ways)) and len(table.lines) == 3
    assert "How far can one seed be trusted?" in {
        finding.question for finding in answer(ways, compare(ways), labels).findings
    }


def test_budgets_of_costs_are_called_so_and_price_every_model(home: Path) -> None:
    scores = {"tiny_sft-arith-125_pt-arith-1500": 0.2, "tiny_sft-arith-500": 0.4}
    costs = {"sft_cost": "2", "pft_cost": "0.5"}
    made = fake_budget(home, scores, sft_ratios=("0", "0.25", "1"), **costs)
    made.write()
    told = write_report(made.plan, home)
    rows = {row.run_name: row for row in gather(made.plan, home)}
    tuned = rows["tiny_sft-arith-125_pt-arith-1500"]
    assert (tuned.sft_ratio, tuned.total_budget, tuned.annotation_cost) == (0.25, 1000, 1000)
    assert "Spend all 1,000 of cost on SFT" in told
    page = (home / "outputs/reports/trial/report.html").read_text(encoding="utf-8")
    assert "a preference example costs <b>0.5</b>" in page and "annotation<br>cost" in page
    with (home / "outputs/reports/trial/results.csv").open(encoding="utf-8") as file:
        prices = {row["run_name"]: row["annotation_cost"] for row in csv.DictReader(file)}
    assert prices["tiny_sft-arith-500"] == "1000.0" == prices["tiny_pt-arith-2000"]
