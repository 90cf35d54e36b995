"""Plans as JSON, and how their stages stand in real run directories."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tuning.plan import Plan, Stage, Standing, descendants, read_stage, save_plan, standing
from tuning.runs import atomic, manifest
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT, digest
from tuning.runs.rundir import Identity, RunDirectory, claim
from tuning.sweetspots.store import METADATA, checkpoint_name
from tuning.training.start import Start

pytestmark = pytest.mark.unit

SFT = Stage(
    name="sft", role="sft", hash="a" * 64, script="run_sft.py", run={"x": 1.5}, phases=("train",),
    parents=("tiny",), task="math", train_size=100, seed=3,
)  # fmt: skip
SPOT = Stage(
    name="sft_sweetspot-ppl-2.0", role="sweetspot", hash="b" * 64, trains=False,
    artifact="sft_sweetspot-ppl-2.0", parents=("sft",), parent="sft", sweetspot="ppl-2.0",
    phases=("infer", "evaluate"), task="math", evaluation_hash="c" * 64,
)  # fmt: skip
FORK = Stage(
    name="tiny_sweetspot-ppl-2.0_dpo-arith-remaining", role="fork", hash="d" * 64,
    phases=("train", "infer"), parents=("sft",), parent="sft", sweetspot="ppl-2.0",
    pft_method="dpo", total_data=100, task="math", evaluation_hash="e" * 64,
    evaluation_suffix="_eval-eeeeeeee", wide=False,
)  # fmt: skip
PLAN = Plan(experiment="trial", stages=(SFT, SPOT, FORK), about={"rules": ["ppl-2.0"]})


def made(root: Path, name: str, hash_: str) -> RunDirectory:
    identity = Identity(run_name=name, kind="x", hash=hash_, hashed={}, settings={})
    with claim(root, identity) as directory:
        return directory


def mark(directory: RunDirectory, *phases: str) -> None:
    directory.write_status("done", "", {phase: {"state": "done"} for phase in phases})


def sft(home: Path, *, outcome: dict | None = None, used: int | None = None) -> RunDirectory:
    """The SFT run, with a sweetspot where `used` is given, finished where `outcome` is."""
    run = made(home / "models", "sft", SFT.hash)
    if used is not None:
        with atomic.whole_directory(run.path / checkpoint_name("ppl-2.0")) as folder:
            atomic.write_json(folder / METADATA, {"sft_data_used": used})
            manifest.write_manifest(folder)
    if outcome is not None:
        run.write_result(sweetspots={"ppl-2.0": outcome})
        mark(run, "train")
    return run


def stands(stage: Stage, home: Path) -> Standing:
    return standing(PLAN, stage, home)


def test_a_plan_comes_back_from_its_file(tmp_path):
    atomic.write_json(tmp_path / "plan.json", PLAN.to_json())
    again = Plan.from_json(atomic.read_json(tmp_path / "plan.json"))
    assert again == PLAN
    assert again.stage("sft") == SFT
    assert json.loads(json.dumps(PLAN.to_json()))["stages"][0]["run"] == {"x": 1.5}


def test_a_plan_of_an_older_form_is_refused_and_left(tmp_path):
    """It had no format, and stages with a command."""
    old = {"experiment": "trial", "about": {}, "stages": [{"name": "sft", "command": ["x"]}]}
    atomic.write_json(tmp_path / "plan.json", old)
    with pytest.raises(
        UserError, match=r"experiment 'trial' was made by another version of tuning"
    ):
        Plan.from_json(old)
    with pytest.raises(UserError, match=r"\(format 1; this one has 2\)"):
        save_plan(tmp_path, PLAN)
    assert atomic.read_json(tmp_path / "plan.json") == old


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "no json", '{"stage": {}}', f'{{"format": {FORMAT}, "stage": {{}}}}'],
)
def test_a_file_that_is_no_stage_is_refused(tmp_path, content):
    file = tmp_path / "stage.json"
    file.write_text(content)
    with pytest.raises(UserError, match=f"{file}"):
        read_stage(file)


def test_nothing_there_is_pending_and_nothing_is_written(tmp_path):
    assert [stands(stage, tmp_path).state for stage in PLAN.stages] == ["pending"] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_trained_stage_is_done_when_its_phases_are(tmp_path):
    run = sft(tmp_path)
    assert stands(SFT, tmp_path).state == "pending"
    mark(run, "train")
    found = stands(SFT, tmp_path)
    assert (found.state, found.run.path, found.train_size) == ("done", run.path, 100)


def test_a_run_of_another_hash_does_not_count(tmp_path):
    mark(made(tmp_path / "models", "sft", "f" * 64), "train")
    found = stands(SFT, tmp_path)
    assert (found.state, found.run.name) == ("pending", "sft-aaaaaaaa")


def test_sweetspots_and_forks_wait_for_their_parent(tmp_path):
    sft(tmp_path)
    assert stands(SPOT, tmp_path) == stands(FORK, tmp_path) == Standing(state="pending")


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ({"state": "unreached", "best": 2.31}, "perplexity never reached 2.0 (best 2.31)"),
        ({"state": "met_by_base", "value": 1.9}, "met by the base, 1.9"),
    ],
)
def test_an_unreached_sweetspot_skips_its_fork_too(tmp_path, outcome, reason):
    sft(tmp_path, outcome=outcome)
    for stage in (SPOT, FORK):
        found = stands(stage, tmp_path)
        assert found == Standing(state="skipped", reason=reason, cause=outcome["state"])


def test_a_fork_without_a_budget_is_skipped_and_its_sweetspot_is_not(tmp_path):
    sft(tmp_path, used=100)
    assert stands(SPOT, tmp_path).state == "pending"
    found = stands(FORK, tmp_path)
    assert found.state == "skipped"
    assert found.reason == "SFT used 100 of 100 examples; none is left"
    assert found.cause == "no_budget_left"


def test_a_fork_finds_its_size_and_is_done_with_all_its_phases(tmp_path):
    sft(tmp_path, used=64)
    found = stands(FORK, tmp_path)
    assert (found.state, found.train_size) == ("pending", 36)
    assert found.run.name == "tiny_sweetspot-ppl-2.0_dpo-arith-36"
    mark(made(tmp_path / "models", found.run.name, FORK.hash), "train")
    assert stands(FORK, tmp_path).state == "pending"
    outputs = found.evaluation.path
    assert outputs == tmp_path / "outputs" / "math" / f"{found.run.name}_eval-eeeeeeee"
    mark(made(outputs.parent, outputs.name, FORK.evaluation_hash), "infer")
    assert stands(FORK, tmp_path).state == "done"


@pytest.mark.parametrize("more", ["", "-0123abcd"])
def test_a_fork_of_a_grid_finds_the_directory_that_its_training_makes(tmp_path, more):
    """Its planned name has the budget too, which the name of its directory has not."""
    sft(tmp_path, used=64)
    alone = replace(FORK, name=FORK.name + more)
    fork = replace(FORK, name=f"{FORK.name}-of-{FORK.total_data}{more}")
    names = [
        Start(parent=None, checkpoint=None, train_size=36).named(s.name) for s in (alone, fork)
    ]
    assert names == [f"tiny_sweetspot-ppl-2.0_dpo-arith-36{more}"] * 2
    assert stands(fork, tmp_path).run.name == names[0]


def test_an_evaluated_sweetspot_is_done(tmp_path):
    sft(tmp_path, used=64)
    outputs = made(tmp_path / "outputs" / "math", SPOT.artifact, SPOT.evaluation_hash)
    mark(outputs, "infer")
    assert stands(SPOT, tmp_path).state == "pending"
    mark(outputs, "evaluate")
    assert stands(SPOT, tmp_path).state == "done"


def test_descendants_reach_down_every_branch():
    stages = [replace(SFT, name=name, parents=parents) for name, parents in (
        ("a", ()), ("b", ("a",)), ("c", ("b",)), ("d", ("a", "x")), ("e", ("x",)),
    )]  # fmt: skip
    assert descendants(stages, "a") == {"b", "c", "d"}
    assert descendants(stages, "c") == set()


def test_a_stage_that_is_not_tuned_has_the_key_that_it_had_before_there_was_tuning():
    plain = Stage(name="a", role="sft", hash="h", phases=("train",))
    later = ("autotune", "before_after", "measure_hash", "first_prompts")
    values = {k: v for k, v in asdict(plain).items() if k not in later}
    assert plain.key == digest(values)[:12]
    tuned = replace(plain, autotune={"strategy": "grid"})
    assert tuned.key != plain.key
    assert tuned.tunes and not plain.tunes
    assert not replace(tuned, phases=("infer",)).tunes
    assert Stage.from_json(asdict(tuned)) == tuned
