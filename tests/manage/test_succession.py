"""When a plan may take the name of another one: never over jobs that would run unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.manage.test_status import PLAN, Experiment, stage
from tests.small_site import use
from tuning.manage.succession import covers, require_successor
from tuning.plan import Plan, save_plan
from tuning.runs.errors import UserError
from tuning.runs.lock import Lock

pytestmark = pytest.mark.unit

ABOUT = {"kind": "sweetspot", "dataset": "arith", "models": ["tiny"], "rules": ["ppl-2.0"]}
FIRST = replace(PLAN, about=ABOUT)
OTHER = Plan(experiment="trial", stages=(stage("x"),), about=ABOUT | {"models": ["large"]})
LARGER = Plan(
    experiment="trial",
    stages=(stage("x"), *PLAN.stages),
    about=ABOUT | {"rules": ["ppl-2.0", "ppl-1.6"], "dataset": ["arith", "more"]},
)
CHANGED = replace(LARGER, stages=(stage("x"),))


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Experiment:
    """An experiment of which the plan is written down and nothing has begun."""
    made = Experiment(use(monkeypatch, tmp_path))
    save_plan(made.folder, FIRST)
    return made


def asked(experiment: Experiment, plan: Plan) -> list[str]:
    return require_successor(plan, experiment.home, experiment.slurm)


@pytest.mark.parametrize("plan", [OTHER, CHANGED])
@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_a_plan_whose_jobs_would_run_unseen_keeps_its_name(experiment, plan, state):
    experiment.submit()
    experiment.task(1, state, "Priority")
    with pytest.raises(UserError) as error:
        asked(experiment, plan)
    assert str(error.value) == (
        "experiment 'trial' is another plan, and 'b', which this one leaves out, would go on "
        "unseen. Choose another --experiment name, or cancel it first: tuning cancel trial"
    )
    assert asked(experiment, LARGER) == []


def test_a_run_that_a_process_here_holds_counts_as_a_job_does(experiment):
    with (
        Lock(experiment.run("a", "running")).holding(),
        pytest.raises(UserError, match="'a', which this one leaves out, would go on unseen"),
    ):
        asked(experiment, CHANGED)


def test_held_tasks_of_an_interrupted_submission_are_no_obstacle(experiment):
    experiment.submit(released=False)
    experiment.task(0, "PENDING", "JobHeldUser")
    assert asked(experiment, CHANGED) == ["a", "b", "c"]


def test_another_plan_does_not_replace_one_that_is_not_finished(experiment):
    experiment.run("a", "done", train=1)
    experiment.run("b", "failed")
    with pytest.raises(UserError) as error:
        asked(experiment, OTHER)
    assert str(error.value) == (
        "experiment 'trial' is another plan, of which 'b' (and 1 more) is not finished. Choose "
        "another --experiment name; to give the other plan up, delete "
        f"'{experiment.folder}' (its runs stay)."
    )
    assert asked(experiment, LARGER) == []
    assert asked(experiment, CHANGED) == ["b", "c"]
    for name in "bc":
        experiment.run(name, "done", train=1)
    assert asked(experiment, OTHER) == []


def test_an_experiment_that_was_cancelled_is_given_up(experiment):
    experiment.submit()
    for index in range(3):
        experiment.task(index, "CANCELLED")
    assert asked(experiment, OTHER) == ["a", "b", "c"]


def test_more_or_fewer_phases_are_the_same_plan(experiment):
    experiment.submit()
    experiment.task(0, "RUNNING")
    evaluated = stage("a", phases=("train", "evaluate"), task="math", evaluation_hash="e" * 64)
    same = (evaluated, *PLAN.stages[1:])
    assert asked(experiment, Plan(experiment="trial", stages=same, about=OTHER.about)) == []


@pytest.mark.parametrize(
    ("choices", "yes"),
    [
        (ABOUT, True), ({}, False), (ABOUT | {"rules": ["ppl-1.6", "ppl-2.0"]}, True),
        (ABOUT | {"rules": ["ppl-1.6"]}, False), (ABOUT | {"dataset": ["other", "arith"]}, True),
        (ABOUT | {"kind": "grid", "seeds": [1]}, True), (ABOUT | {"dataset": "other"}, False),
    ],
)  # fmt: skip
def test_an_experiment_is_extended_by_more_of_its_choices(choices, yes):
    assert covers(choices, ABOUT) is yes
