"""The report of a search says what was tried, what was stopped early, and that the rest was not
run.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from tests.report.fake_experiment import Fake, budget, made_up
from tuning.experiments.budget import budget_plan
from tuning.experiments.search import Rounds, pending
from tuning.report.build import write_report
from tuning.report.search import Names, beliefs
from tuning.search.arms import Arm, Measure, Result
from tuning.search.config import SearchConfig
from tuning.search.rounds import STOP, Belief, Round, actions

pytestmark = pytest.mark.unit


def test_the_report_of_a_search_shows_what_was_tried_and_what_was_not(home: Path):
    ratios = ("0", "0.1", "0.25", "0.5", "0.75", "1")
    whole, _ = budget_plan(budget(sft_ratios=ratios, pft_methods=("dpo", "kto")))
    low = {s.name: 0.03 for s in whole.stages if s.role == "reference_pt"}
    rounds = Rounds.begin(whole, SearchConfig(max_runs=9, batch=2))
    plan = rounds.resume()
    while plan is not None:
        scores = made_up(whole) | low
        fake = Fake(home, plan, scores, prompts=400, samples=4)
        for stage in pending(plan):
            fake.write_stage(stage)
        text = write_report(plan, home)
        plan = rounds.advance()
        assert "not over" in " ".join(text.split())
    done = actions(rounds.record.rounds)
    stopped = sum(action == STOP for action in done.values())
    text = " ".join(write_report(rounds.plan, home).split())
    assert f"The search ran {len(done)} of the 11 splits of the grid" in text
    assert f"the other {11 - len(done)} were not run" in text
    assert rounds.last.end in text
    page = (home / "outputs/reports/trial/report.html").read_text()
    assert "What the search tried" in page and "Every decision and its reason" in page
    assert page.count("on 50</td>") == page.count('<td class="why">0.') >= (stopped > 0)
    assert re.search(r"<td><b>0\.\d{3}</b></td>", page)
    assert text.count("evaluated on the first 50 prompts") == stopped
    found = (home / "outputs/reports/trial/results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(found)))
    assert len([r for r in rows if r["pass_at_1"] == "" and "first 50" in r["note"]]) == stopped


def test_a_grid_has_no_section_about_a_search(home: Path):
    whole, _ = budget_plan(budget())
    Rounds.begin(whole, SearchConfig()).resume()
    Fake(home, whole, made_up(whole)).write()
    assert "search" not in write_report(whole, home)


@pytest.mark.parametrize(("score", "said"), [(0.45, False), (0.55, True)])
def test_a_score_above_that_of_the_expected_best_is_named(score: float, said: bool):
    arms = [Arm(model="tiny", size=1000, n_sft=n, method="dpo") for n in (0, 500)]
    other = Arm(model="tiny", size=2000, n_sft=0, method="dpo")
    found = {
        arm: Result(full=Measure(prompts=100, score=of, variance=0.01))
        for arm, of in zip([*arms, other], (score, 0.5, 0.9), strict=True)
    }
    belief = Belief(
        model="tiny",
        size=1000,
        best=arms[1].key,
        score=0.49,
        low=0.4,
        high=0.6,
        within=0.1,
        sure=0.9,
    )
    names = Names(arms=(*arms, other))
    (line,) = beliefs(Round(beliefs=(belief,)), names, found)
    assert line.startswith("1,000 examples: 500 of 1,000 examples on SFT, then DPO, expected")
    assert said == ("The highest score, 0.550, is that of all 1,000 examples on DPO:" in line)


def test_budgets_that_are_costs_are_called_so():
    arms = tuple(
        Arm(model="tiny", size=1000, n_sft=n, method=method, sft_cost=2.0)
        for n, method in ((0, "dpo"), (250, "dpo"), (500, ""))
    )
    names = Names(arms=arms, unit="of cost")
    assert names.budget("tiny", 1000) == "1,000 of cost"
    assert [names.of(arm.key) for arm in arms] == [
        "all 1,000 of cost on DPO", "SFT on 250 examples, then DPO", "all 1,000 of cost on SFT",
    ]  # fmt: skip
