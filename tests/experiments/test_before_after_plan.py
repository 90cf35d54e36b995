"""--evaluate_before in plans: which stages measure, against what, and that runs stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.run_configs import sft
from tests.small_site import use
from tuning import run_sft, run_sweetspot_pipeline
from tuning.evaluation.before_after import BeforeAfterConfig, HeldOutConfig
from tuning.experiments.budget import Budget, budget_plan
from tuning.experiments.render import command
from tuning.flags import restore
from tuning.phases.before_after import Model, before_after_config
from tuning.plan import Plan, Stage, standing
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.measured import FILE, PHASE, told_by
from tuning.runs.rundir import Identity, claim

pytestmark = pytest.mark.unit

FLAGS = (
    "--model", "tiny", "--dataset", "arith", "--task", "math", "--total_data", "1000",
    "--sft_data", "500", "--perplexity_thresholds", "2.0", "--do_sft", "--do_dpo",
)  # fmt: skip
SCORED = ("--do_inference", "--do_evaluation")
BEFORE = ("--evaluate_before", "--heldout_pairs", "50")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return use(monkeypatch, tmp_path)


def planned(*words: str) -> Plan:
    return run_sweetspot_pipeline.plan_of(
        run_sweetspot_pipeline.parser().parse_args([*FLAGS, *words])
    )


def measures(stage: Stage) -> BeforeAfterConfig:
    assert stage.before_after is not None
    return restore(BeforeAfterConfig, stage.before_after)


def test_every_training_is_measured_and_nothing_else_changes() -> None:
    plain, measured = planned(*SCORED), planned(*SCORED, *BEFORE)
    assert plain.experiment == measured.experiment
    for before, after in zip(plain.stages, measured.stages, strict=True):
        trained = after.kind in ("sft", "pft")
        assert (after.before_after is not None) == trained
        assert ("measure" in after.phases) == trained
        phases = tuple(p for p in after.phases if p != "measure")
        bare = replace(after, before_after=None, measure_hash=None, phases=phases)
        assert bare == before
        if trained:
            assert measures(after).hash == after.measure_hash, "read back, it is as planned"


@pytest.mark.parametrize("pairs", ["50", "60"])
def test_a_training_that_was_measured_otherwise_is_measured_again(home: Path, pairs: str) -> None:
    """On other held-out pairs it is other work; on the same ones it is done."""
    plan, other = planned(*BEFORE), planned("--evaluate_before", "--heldout_pairs", pairs)
    stage, again = (next(s for s in p.stages if s.role == "fork") for p in (plan, other))
    stage, again = (replace(s, role="pt", sweetspot=None) for s in (stage, again))
    write_measured(home, stage)
    same = pairs == "50"
    assert standing(plan, stage, home).state == "done"
    assert standing(other, again, home).state == ("done" if same else "pending")
    assert (stage.work == again.work) is same
    old = replace(again, measure_hash=None)  # of a plan from before measurements were told apart
    assert standing(other, old, home).state == "done"


@pytest.mark.parametrize(
    ("made", "asked", "state"),
    [(50, 50, "done"), (50, None, "pending"), (None, 50, "done"), (50, 20, "pending")],
)
def test_what_was_measured_on_the_first_prompts_is_measured_on_all(
    home: Path, made: int | None, asked: int | None, state: str
) -> None:
    plan = planned(*BEFORE)
    stage = next(s for s in plan.stages if s.role == "reference_sft")
    write_measured(home, replace(stage, first_prompts=made))
    assert standing(plan, replace(stage, first_prompts=asked), home).state == state


def write_measured(home: Path, stage: Stage) -> None:
    """A run that was trained and measured, as its phase records it."""
    identity = Identity(run_name=stage.name, kind="sft", hash=stage.hash, settings={}, hashed={})
    with claim(home / "models", identity) as run, run.phase("train"), run.phase(PHASE):
        told = told_by(stage.measure_hash or "", stage.first_prompts)
        atomic.write_json(run.path / FILE, told)


def test_what_a_training_starts_from_is_what_the_plan_evaluates() -> None:
    """The before of a fork is the evaluation of its sweetspot, that of SFT the base's."""
    plan = planned(*SCORED, *BEFORE)
    by_role = {stage.role: stage for stage in plan.stages}
    for role, start in (
        ("sft", "base"), ("fork", "sweetspot"), ("reference_sft", "base"), ("reference_pt", "base"),
    ):  # fmt: skip
        found = measures(by_role[role])
        assert found.before is not None
        assert found.before.hash == by_role[start].evaluation_hash, role
        assert found.before.run_name == by_role[start].artifact
        assert (found.pairs is None) == (role in ("sft", "reference_sft"))
        assert found.held_out == HeldOutConfig(heldout_pairs=50)


def test_without_answers_likelihoods_alone_are_measured() -> None:
    plan = planned(*BEFORE)
    assert all(measures(s).before is None for s in plan.stages if s.kind in ("sft", "pft"))


def test_a_budget_measures_the_runs_that_preference_tuning_starts_from() -> None:
    choices = {
        "task": "math", "dataset": "arith", "sft_ratios": ("0", "0.5", "1"),
        "base_models": ("tiny",), "pft_methods": ("kto",), "train_sizes": (100,),
        "do_training": True, "do_sft_first": True, "do_inference": True, "do_evaluation": True,
    }  # fmt: skip
    plain, _ = budget_plan(Budget(**choices))
    plan, _ = budget_plan(Budget(**choices, held_out=HeldOutConfig()))
    hashes = [[(s.name, s.hash, s.evaluation_hash) for s in p.stages] for p in (plain, plan)]
    assert hashes[0] == hashes[1]
    sft = next(s for s in plan.stages if s.role == "sft")
    pt = next(s for s in plan.stages if s.role == "pt")
    assert sft.phases == ("train", "infer", "evaluate", "measure")
    before = measures(pt).before
    assert before is not None and before.hash == sft.evaluation_hash


def test_the_command_of_a_stage_measures_the_same() -> None:
    stage = next(s for s in planned(*SCORED, *BEFORE).stages if s.role == "sft")
    script, *words = command(stage)
    assert script == "run_sft.py" and "--evaluate_before" in words
    again = run_sft.described(run_sft.parser().parse_args(words)).options.before_after
    assert again == measures(stage)


def test_pools_that_a_dataset_lacks_are_not_measured() -> None:
    from tests.run_configs import fork

    run = fork()
    found = before_after_config(run, HeldOutConfig(), None, 8)
    assert found.validation is not None and found.pairs is not None
    assert Model.before(run).name.endswith("_sweetspot-ppl-2.0")
    assert before_after_config(sft(), HeldOutConfig(), None, 8).pairs is None


def test_no_pair_to_measure_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"^heldout_pairs is 0; it must be at least 1"):
        planned(*SCORED, "--evaluate_before", "--heldout_pairs", "0")
