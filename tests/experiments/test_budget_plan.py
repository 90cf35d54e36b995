"""The budget experiment as a list of stages: exact splits, runs that are shared, what must stand
first, and several plans as one.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from tests.small_site import COLLECTIONS, use
from tuning import config as site
from tuning import run_dpo, run_inference, run_pretrain, run_sft, run_sweetspot_pipeline
from tuning.experiments.budget import Budget, Split, budget_plan, exact_ratio, merged
from tuning.experiments.render import command
from tuning.experiments.sweetspot import Wanted, sweetspot_plan
from tuning.flags import given
from tuning.plan import Plan, Stage, standing
from tuning.runs.errors import UserError
from tuning.runs.rundir import Identity, RunDirectory, claim
from tuning.training import parents
from tuning.training.config_training import PT_PARTS, SFT_PARTS, preference_config, sft_config

pytestmark = pytest.mark.unit

PARSERS = {
    "run_pretrain.py": run_pretrain, "run_sft.py": run_sft, "run_dpo.py": run_dpo,
    "run_inference.py": run_inference,
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def budget(**changes) -> Budget:
    asked = {
        "task": "math", "dataset": "arith", "sft_ratios": ("0.25",), "base_models": ("tiny",),
        "pft_methods": ("dpo",), "do_training": True, "do_inference": True, "do_evaluation": True,
        "do_sft_first": True,
    }  # fmt: skip
    return Budget(**(asked | changes))


def plan(**changes) -> Plan:
    return budget_plan(budget(**changes))[0]


def notes(**changes) -> list[str]:
    return budget_plan(budget(**changes))[1]


def told(made: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(stage.role, stage.name, stage.phases) for stage in made.stages]


def by_role(made: Plan, role: str) -> list[Stage]:
    return [stage for stage in made.stages if stage.role == role]


def stand(stage: Stage, state: str = "done", reason: str = "") -> None:
    """A run directory as training leaves it, without weights."""
    identity = Identity(run_name=stage.name, kind="sft", hash=stage.hash, hashed={}, settings={})
    with claim(site.models_dir(), identity) as directory:
        directory.write_status(state, reason, {"train": {"state": state}})


ALL = ("train", "infer", "evaluate")
EVALUATE = ("infer", "evaluate")


def test_one_point_is_sft_on_its_share_and_preference_tuning_of_it_on_the_rest():
    made = plan()
    assert told(made) == [
        ("pretrain", "tiny", ("train",)),
        ("base", "tiny-base", EVALUATE),
        ("sft", "tiny_sft-arith-250", ("train",)),
        ("pt", "tiny_sft-arith-250_pt-arith-750", ALL),
    ]
    _, base, sft, pt = made.stages
    assert (base.parents, sft.parents) == (("tiny",), ("tiny",))
    assert (pt.parents, pt.parent, pt.sweetspot) == ((sft.name,), sft.name, None)
    assert (pt.train_size, pt.total_data, pt.pft_method, pt.seed) == (750, 1000, "dpo", 42)
    assert "--do_inference" not in command(sft) and "--do_training" in command(sft)
    assert not any(stage.state == "done" for stage in (standing(made, s, site.home()) for s in
                                                       made.stages))  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "roles"),
    [
        ("1", {"reference_sft": ["tiny_sft-arith-1000"]}),
        ("0.9999", {"reference_sft": ["tiny_sft-arith-1000"]}),
        ("0", {"reference_pt": ["tiny_pt-arith-1000", "tiny_pt-arith-1000_kto"]}),
        (
            "0.0005",
            {
                "sft": ["tiny_sft-arith-1"],
                "pt": ["tiny_sft-arith-1_pt-arith-999", "tiny_sft-arith-1_pt-arith-999_kto"],
            },
        ),
        ("0.0004", {"reference_pt": ["tiny_pt-arith-1000", "tiny_pt-arith-1000_kto"]}),
    ],
)
def test_the_ends_of_the_scale_are_one_run_a_method_or_one_for_all(ratio, roles):
    made = plan(sft_ratios=(ratio,), pft_methods=("dpo", "kto"))
    found: dict[str, list[str]] = {}
    for stage in made.stages[2:]:
        found.setdefault(stage.role, []).append(stage.name)
    assert found == roles


@pytest.mark.parametrize(
    ("size", "ratio", "n_sft"),
    [
        (250, "0.01", 3), (250, "0.010", 3), (50, "0.01", 1), (49, "0.01", 0), (3, "0.5", 2),
        (1000, "0.29", 290), (1000, "0.57", 570), (10**15, "0.1", 10**14), (100, "0.285", 29),
        (10**6, "0.000000499999", 0), (1000, "1e-3", 1),
    ],
)  # fmt: skip
def test_shares_are_counted_exactly_and_halves_go_up(size, ratio, n_sft):
    split = Split(size=size, ratio=exact_ratio(ratio))
    assert (split.n_sft, split.n_pt) == (n_sft, size - n_sft)


def test_what_is_rounded_is_said():
    assert notes(train_sizes=(250,), sft_ratios=("0.01", "0.5")) == [
        "sft_ratio 0.01 of 250 examples is 2.5: SFT takes 3 and preference tuning 247"
    ]
    assert notes(train_sizes=(250, 1000), sft_ratios=("0.5", "1")) == []


@pytest.mark.parametrize("same", [("1", "1.0", "1.00", Decimal(1)), ("0.25", ".25", "25e-2")])
def test_a_ratio_is_the_same_however_it_is_written(same):
    assert len({told(plan(sft_ratios=(ratio,)))[-1] for ratio in same}) == 1
    assert plan(sft_ratios=same) == plan(sft_ratios=same[:1])
    assert len({plan(sft_ratios=(ratio,)).experiment for ratio in same}) == 1


def test_a_grid_goes_model_by_model_and_a_parent_serves_all_its_methods():
    made = plan(
        base_models=("tiny", "big"), sft_ratios=("0", "0.5", "1"), pft_methods=("dpo", "kto"),
        train_sizes=(100, 200),
    )  # fmt: skip
    names = [stage.name for stage in made.stages]
    assert len(set(names)) == len(names)
    assert names[:8] == [
        "tiny", "tiny-base", "tiny_pt-arith-100", "tiny_pt-arith-100_kto", "tiny_sft-arith-50",
        "tiny_sft-arith-50_pt-arith-50", "tiny_sft-arith-50_pt-arith-50_kto", "tiny_sft-arith-100",
    ]  # fmt: skip
    models = [made.about["model_of"][name] for name in names]
    assert models == sorted(models, reverse=True) and set(models) == {"tiny", "big"}
    assert [stage.name for stage in by_role(made, "base")] == ["tiny-base", "big"]
    assert by_role(made, "base")[1].parents == ()
    seen: set[str] = set()
    for stage in made.stages:
        assert set(stage.parents) <= seen
        seen.add(stage.name)


@pytest.mark.parametrize("sizes", [(250, 1000), (1000, 250)])
def test_a_parent_that_is_also_a_budget_of_its_own_is_one_stage(sizes):
    made = plan(train_sizes=sizes, sft_ratios=("0.25", "1"))
    (run,) = [stage for stage in made.stages if stage.name == "tiny_sft-arith-250"]
    assert run.role == "reference_sft"
    assert run.phases == ALL and run.total_data == run.train_size
    flags = [word for word in command(run) if word.startswith("--do_")]
    assert flags == ["--do_training", "--do_inference", "--do_evaluation"]
    assert run.name in {stage.parent for stage in by_role(made, "pt")}


def test_a_parent_that_is_trained_as_a_budget_of_its_own_needs_no_sft_first():
    asked = {"train_sizes": (500, 1000), "sft_ratios": ("1", "0.5"), "do_sft_first": False}
    with pytest.raises(UserError, match="tiny_sft-arith-250' is not trained yet") as error:
        plan(**asked)
    assert "tiny_sft-arith-500'" not in str(error.value)
    stand(plan(train_sizes=(500,), sft_ratios=("0.5",)).stages[2])
    made = plan(**asked)
    assert {stage.name: stage.phases for stage in made.stages if stage.role.endswith("sft")} == {
        "tiny_sft-arith-500": ALL, "tiny_sft-arith-250": (), "tiny_sft-arith-1000": ALL,
    }  # fmt: skip


def test_a_parent_must_stand_or_be_trained_first():
    point = {"do_sft_first": False}
    with pytest.raises(UserError) as error:
        plan(**point)
    message = str(error.value)
    assert "'tiny_sft-arith-250' is not trained yet" in message
    assert "DO_SFT_FIRST=y or --do_sft_first" in message
    assert "python tuning/run_sft.py --model tiny --dataset arith --task math" in message
    sft = plan().stages[2]
    stand(sft, "failed", "out of memory")
    with pytest.raises(UserError, match=r"failed \(out of memory\)"):
        plan(**point)
    stand(sft)
    made = plan(**point)
    (there,) = by_role(made, "sft")
    assert (there.phases, there.has_work) == ((), False)
    assert standing(made, there, site.home()).state == "done"
    assert [stage.hash for stage in made.stages] == [stage.hash for stage in plan().stages]
    assert made.experiment == plan().experiment


def test_all_missing_parents_are_named_at_once():
    with pytest.raises(UserError, match="2 SFT runs") as error:
        plan(do_sft_first=False, base_models=("tiny", "big"))
    assert "'tiny_sft-arith-250'" in str(error.value) and "'big_sft-arith-250'" in str(error.value)


def test_without_training_what_stands_is_evaluated_and_the_rest_is_noted():
    ratios = {"sft_ratios": ("0", "0.25", "1")}
    asked = {"do_training": False, **ratios}
    with pytest.raises(UserError, match=r"none of the 3 runs of this grid.*DO_TRAINING=y"):
        plan(**asked)
    full = plan(**ratios)
    for stage in (*by_role(full, "sft"), *by_role(full, "pt")):
        stand(stage)
    made, said = budget_plan(budget(**asked))
    assert told(made) == [
        ("pretrain", "tiny", ("train",)),
        ("base", "tiny-base", EVALUATE),
        ("sft", "tiny_sft-arith-250", ()),
        ("pt", "tiny_sft-arith-250_pt-arith-750", EVALUATE),
    ]
    assert said == [
        "left out: 'tiny_pt-arith-1000' is not trained yet",
        "left out: 'tiny_sft-arith-1000' is not trained yet",
    ]
    assert "--do_training" not in command(made.stages[-1])
    assert made.experiment == full.experiment
    assert list(made.about["model_of"]) == [stage.name for stage in made.stages]


def test_training_alone_evaluates_nothing():
    made = plan(do_inference=False, do_evaluation=False)
    assert told(made) == [
        ("pretrain", "tiny", ("train",)),
        ("sft", "tiny_sft-arith-250", ("train",)),
        ("pt", "tiny_sft-arith-250_pt-arith-750", ("train",)),
    ]
    assert made.experiment == plan().experiment


def test_scores_of_what_is_yet_to_be_trained_need_answers():
    with pytest.raises(UserError, match="add inference"):
        plan(do_inference=False)
    for stage in plan().stages:
        if stage.role == "pt":
            stand(stage)
    assert plan(do_inference=False).stages[-1].phases == ("train", "evaluate")


def test_every_command_is_one_that_its_entry_point_takes():
    made = plan(
        base_models=("tiny", "big"), sft_ratios=("0", "0.3", "1"), seeds=(3, 4),
        pft_methods=("dpo", "kto", "grpo"),
    )  # fmt: skip
    for stage in made.stages:
        script, *flags = command(stage)
        PARSERS[script].parser().parse_args(flags)


def test_a_grid_takes_the_settings_of_sft_and_preference_tuning():
    """As a sweetspot experiment does."""
    plain, made = plan(), plan(sft_values={"learning_rate": 1e-3}, pft_values={"beta": 0.7})
    (sft,), (pt,) = by_role(made, "sft"), by_role(made, "pt")
    assert sft.run["training"]["learning_rate"] == 1e-3
    assert (pt.run["training"]["beta"], pt.run["parent"]["hash"]) == (0.7, sft.hash)
    assert {s.hash for s in made.stages} & {s.hash for s in plain.stages} == {
        s.hash for s in plain.stages if s.role in ("pretrain", "base")
    }
    engine = plan(sft_values={"trainer": "engine"})
    assert [s.joinable for s in engine.stages] == [True, False, True, False]


def test_the_commands_lead_to_the_same_runs():
    made = plan(seeds=(3,), pft_methods=("dpo", "grpo"), sft_ratios=("0.25", "0"))
    (sft,) = by_role(made, "sft")
    args = run_sft.parser().parse_args(command(sft)[1:])
    config = sft_config(
        model=args.model, dataset=args.dataset, task=args.task, train_size=args.train_size,
        values=given(args, SFT_PARTS),
    )  # fmt: skip
    assert (config.hash, config.run_name, config.training.seed) == (sft.hash, sft.name, 3)
    with claim(site.models_dir(), config.identity(config.run_name, None)):
        pass
    for stage in by_role(made, "pt") + by_role(made, "reference_pt"):
        args = run_dpo.parser().parse_args(command(stage)[1:])
        parent = None
        if args.parent_run:
            started, directory = parents.named_sft(args.parent_run)
            parent = parents.parent_of(started, directory.name)
        tuned = preference_config(
            model=args.model, dataset=args.dataset, task=args.task, pft_method=args.pft_method,
            train_size=args.train_size, parent=parent, values=given(args, PT_PARTS),
        )  # fmt: skip
        assert (tuned.hash, tuned.run_name) == (stage.hash, stage.name)


def test_seeds_are_runs_of_their_own_and_the_default_seed_is_the_default_run():
    made = plan(seeds=(42, 7))
    assert [stage.seed for stage in by_role(made, "pt")] == [42, 7]
    assert by_role(made, "pt")[0] == by_role(plan(), "pt")[0]
    parent_of = {stage.name: stage.parent for stage in by_role(made, "pt")}
    assert len(set(parent_of.values())) == 2
    with pytest.raises(UserError, match="seed is -1"):
        plan(seeds=(-1,))


def test_a_name_that_is_taken_moves_the_run_and_what_continues_it():
    identity = Identity(
        run_name="tiny_sft-arith-250", kind="sft", hash="f" * 64, hashed={}, settings={}
    )
    with claim(site.models_dir(), identity):
        pass
    made = plan()
    (sft,), (pt,) = by_role(made, "sft"), by_role(made, "pt")
    assert sft.name == f"tiny_sft-arith-250-{sft.hash[:8]}"
    assert pt.parent == sft.name and pt.name.startswith(f"{sft.name}_pt-")


def test_a_plan_tells_what_it_is_about_and_comes_back_from_json():
    made = plan(
        task="gsm8k", base_models=("tiny", "big"), sft_ratios=("0.50", "1.0"), seeds=(1,),
        train_sizes=(100, 200),
    )  # fmt: skip
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made
    about = {key: value for key, value in made.about.items() if key != "model_of"}
    assert about == {
        "kind": "budget", "models": ["tiny", "big"], "sources": ["run:tiny", "org/big"],
        "dataset": "arith", "task": "math", "train_sizes": [100, 200], "sft_ratios": ["0.5", "1"],
        "methods": ["dpo"], "seeds": [1], "k_values": [[1, 2, 4], [1, 8]], "prompts": [50, 200],
        "samples": [4, 8], "temperature": 0.7,
    }  # fmt: skip


def test_an_experiment_is_named_after_what_it_holds():
    assert plan().experiment.startswith("tiny_arith_1000-")
    assert len(plan().experiment) == len("tiny_arith_1000-") + 6
    assert plan(train_sizes=(100, 50)).experiment.startswith("tiny_arith_100-50-")
    assert plan(base_models=("tiny", "big")).experiment.startswith("grid_arith_1000-")
    assert plan(experiment="mine").experiment == "mine"
    others = [{"sft_ratios": ("0.5",)}, {"pft_methods": ("kto",)}, {"seeds": (1,)},
              {"evaluation_values": {"temperature": 1.0}}]  # fmt: skip
    assert len({plan(**change).experiment for change in ({}, *others)}) == 5


def test_nothing_is_written(home):
    plan(sft_ratios=("0", "0.5", "1"))
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_models": ("tiny", "tyni")}, "unknown model 'tyni'.*Did you mean 'tiny'"),
        ({"dataset": "aritt"}, "unknown dataset 'aritt'"),
        ({"task": "maths"}, "unknown task 'maths'"),
        ({"task": "instruction"}, "task 'instruction' has no dataset 'arith'"),
        ({"pft_methods": ("gpo",)}, "unknown preference method 'gpo'.*Did you mean 'grpo'"),
        ({"pft_methods": ()}, "pft_method is missing"),
        ({"sft_ratios": ("0.5", "1.01")}, r"sft_ratio is '1\.01'; it must be a number from 0 to 1"),
        ({"sft_ratios": ("-0.1",)}, "sft_ratio is '-0.1'"),
        ({"sft_ratios": ("nan",)}, "sft_ratio is 'nan'"),
        ({"sft_ratios": ("half",)}, "sft_ratio is 'half'"),
        ({"sft_ratios": ("1e-13",)}, "12 decimals at most"),
        ({"sft_ratios": ("1e-999999999",)}, "12 decimals at most"),
        ({"sft_ratios": ()}, "sft_ratio is empty"),
        ({"train_sizes": (0,)}, "train_sizes is 0"),
        ({"train_sizes": (20_000,)}, "preference part of train_sizes 20000 at sft_ratio 0.25 is "
         "15000, but the preference pool of 'arith' has only"),
        ({"train_sizes": (20_000,), "sft_ratios": ("1",)}, "SFT part of train_sizes 20000"),
        ({"experiment": "a/b"}, "experiment 'a/b' cannot name a folder"),
        ({"evaluation_values": {"prompts": 1001}}, "prompts is 1001, but the test pool"),
        (
            {"do_training": False, "do_inference": False, "do_evaluation": False},
            "nothing to do.*DO_TRAINING=y.*--do_training",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(home, changes, message):
    with pytest.raises(UserError, match=message):
        plan(**changes)
    assert list(home.iterdir()) == []


def test_sft_alone_needs_no_method_and_grpo_needs_answers(monkeypatch, tmp_path):
    assert plan(sft_ratios=("1.0",), pft_methods=()).stages[-1].role == "reference_sft"
    root = tmp_path / "mine"
    root.mkdir()
    use(monkeypatch, root, COLLECTIONS)
    for pool, size in {"sft": 20, "pt": 100, "va": 1, "te": 50}.items():
        rows = [
            {"prompt": f"{pool}{n}", "completion": "c", "chosen": "a", "rejected": "b"}
            | ({} if pool == "pt" else {"answer": "1"})
            for n in range(size)
        ]
        (root / f"{pool}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = {"dataset": "mine", "train_sizes": (40,)}
    assert plan(**mine).stages[-1].train_size == 30
    with pytest.raises(UserError, match=r"pt\.jsonl:1 lacks answer; grpo needs prompt, answer in"):
        plan(**mine, pft_methods=("grpo",))
    assert plan(**mine, sft_ratios=("0.5",), pft_methods=("dpo",)).stages[-1].role == "pt"
    with pytest.raises(UserError, match="is 40, but the sft pool of 'mine' has only 20"):
        plan(**mine, sft_ratios=("1",), pft_methods=("grpo",))


def sweetspots(**changes) -> Plan:
    asked = {
        "model": "tiny", "dataset": "arith", "task": "math", "total_data": 1000, "sft_data": 500,
        "do_sft": True, "do_dpo": True, "do_inference": True, "do_evaluation": True,
    }  # fmt: skip
    thresholds = {"perplexity_thresholds": changes.pop("thresholds", (2.0,))}
    changes["sft_values"] = thresholds | changes.get("sft_values", {})
    return sweetspot_plan(Wanted(**(asked | changes)))


def test_plans_of_both_kinds_share_what_is_the_same():
    one, other = plan(sft_ratios=("0", "0.5", "1")), sweetspots()
    both = merged([one, other], "both")
    assert both.experiment == "both" and both.about["kind"] == "grid"
    names = [stage.name for stage in both.stages]
    assert names == list(dict.fromkeys(s.name for p in (one, other) for s in p.stages))
    shared = {s.name for s in one.stages} & {s.name for s in other.stages}
    assert shared == {"tiny", "tiny-base", "tiny_sft-arith-1000", "tiny_pt-arith-1000"}
    for stage in other.stages:
        united = both.stage(stage.name)
        assert (united.run, united.evaluation) == (stage.run, stage.evaluation)
        assert united.phases == stage.phases
    assert set(both.about["model_of"]) == set(names)
    assert both.about["models"] == ["tiny"] and both.about["train_sizes"] == [1000]
    assert Plan.from_json(json.loads(json.dumps(both.to_json()))) == both
    seen: set[str] = set()
    for stage in both.stages:
        assert set(stage.parents) <= seen
        seen.add(stage.name)


def test_phases_of_the_same_run_are_united_with_their_flags():
    trained = plan(do_inference=False, do_evaluation=False, evaluation_values={"prompts": 40})
    whole = plan(evaluation_values={"prompts": 40})
    for order in ([trained, whole], [whole, trained]):
        both = merged(order, "both")
        assert {s.name: s.phases for s in both.stages} == {s.name: s.phases for s in whole.stages}
        assert {s.name: command(s) for s in both.stages if s.has_work} == {
            s.name: command(s) for s in whole.stages
        }
    assert merged([whole], "other").about == whole.about
    names = {merged(order).experiment for order in ([trained, whole], [whole])}
    assert len(names) == 1 and names.pop().startswith("grid_arith-")


def test_budgets_together_are_a_budget_experiment():
    both = merged([plan(), plan(base_models=("big",), train_sizes=(100,))], "both")
    assert both.about["kind"] == "budget"
    assert both.about["models"] == ["tiny", "big"] and both.about["train_sizes"] == [1000, 100]
    assert both.about["prompts"] == [50, 200] and both.about["dataset"] == "arith"


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([plan, {"evaluation_values": {"temperature": 1.0}}], "evaluation settings cannot vary"),
        ([sweetspots, {"evaluation_values": {"prompts": 40}}], "evaluation settings cannot vary"),
    ],
    ids=["budget", "sweetspot"],
)
def test_a_name_cannot_stand_for_two_things(others, message):
    make, change = others
    first = sweetspots() if make is sweetspots else plan()
    with pytest.raises(UserError, match=message):
        merged([first, make(**change)], "both")


def test_forks_of_one_sweetspot_with_different_budgets_are_told_apart():
    first, second = sweetspots(), sweetspots(total_data=900, references=False)
    both = merged([first, second], "both")
    forks = [s for s in both.stages if s.role == "fork"]
    assert set(both.about["model_of"]) == {stage.name for stage in both.stages}
    assert len(forks) == len({s.name for s in forks})
    for fork in forks:
        assert f"-remaining-of-{fork.total_data}" in fork.name
    assert {s.hash for s in forks} == {
        s.hash for plan in (first, second) for s in plan.stages if s.role == "fork"
    }


@pytest.mark.parametrize("make", [sweetspots, plan])
def test_preference_tuning_on_another_base_than_its_sft_is_refused(monkeypatch, tmp_path, make):
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("sft: {", "sft: {chat_template: chatml, "))
    with pytest.raises(UserError, match="another base than --model tiny is now: chat_template"):
        make()


def test_early_stopping_is_that_of_collections_yaml_unless_it_is_switched_off(
    monkeypatch, tmp_path
):
    words = "--model tiny --dataset arith --task math --total_data 1000 --sft_data 500 --do_sft"
    other = tmp_path / "other"
    other.mkdir()

    def stops(*more: str) -> bool:
        args = run_sweetspot_pipeline.parser().parse_args([*words.split(), *more])
        made = run_sweetspot_pipeline.plan_of(args)
        (stage,) = by_role(made, "sft")
        return stage.run["perplexity"]["early_stop"]

    assert stops() and not stops("--no_early_stop")
    use(monkeypatch, other, COLLECTIONS.replace("sft: {", "sft: {early_stop: false, "))
    assert not stops()


def test_a_stage_of_a_plan_is_there_once_it_is_trained():
    made = plan()
    pt = made.stages[-1]
    stand(pt)
    found = standing(made, pt, site.home())
    assert found.run is not None and found.run.name == pt.name
    assert RunDirectory(site.models_dir() / pt.name).done("train")
    assert found.state == "pending"


@pytest.mark.parametrize(
    ("size", "ratio", "costs", "expected"),
    [
        (1000, "0.5", ("1", "1"), (500, 500)),
        (1000, "0.5", ("1", "0.5"), (500, 1000)),
        (1000, "0.25", ("5", "1"), (50, 750)),
        (1000, "1", ("3", "0.5"), (333, 0)),
        (1000, "0", ("3", "0.3"), (0, 3333)),
        (10, "0.5", ("4", "1"), (1, 6)),
        (11, "0.95", ("4", "1"), (2, 3)),
        (1000, "0.1", ("0.1", "0.7"), (1000, 1285)),
    ],
    ids=str,
)
def test_a_budget_of_costs_buys_whole_examples_and_is_never_overspent(size, ratio, costs, expected):
    sft, pft = map(Decimal, costs)
    split = Split(size=size, ratio=exact_ratio(ratio), sft_cost=sft, pft_cost=pft)
    assert (split.n_sft, split.n_pt) == expected
    spent = split.n_sft * sft + split.n_pt * pft
    assert spent <= size and (size - spent < max(sft, pft))


def test_costs_choose_the_examples_and_change_no_run():
    made = plan(sft_ratios=("0.25", "1"), sft_cost="2", pft_cost="0.5")
    names = [stage.name for stage in made.stages if stage.trains and stage.role != "pretrain"]
    assert names == [
        "tiny_sft-arith-125", "tiny_sft-arith-125_pt-arith-1500", "tiny_sft-arith-500",
    ]  # fmt: skip
    assert {s.total_data for s in made.stages if s.role in ("pt", "reference_sft")} == {1000}
    assert (made.about["sft_cost"], made.about["pft_cost"]) == ("2", "0.5")
    assert (
        by_role(made, "reference_sft")[0].hash
        == by_role(plan(train_sizes=(500,), sft_ratios=("1",)), "reference_sft")[0].hash
    )
    (note,) = notes(sft_ratios=("0.5",), sft_cost="7")
    assert note == (
        "sft_ratio 0.5 of a cost of 1000 buys 71.4285714286 SFT examples: SFT takes 71, preference "
        "tuning 503, and 0 of the budget is left"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft_cost": "0"}, "sft_cost is '0'; it must be a number above 0"),
        ({"pft_cost": "-1"}, "pft_cost is '-1'"),
        ({"sft_cost": "cheap"}, "sft_cost is 'cheap'"),
        ({"pft_cost": "nan"}, "pft_cost is 'nan'"),
        ({"sft_cost": "2000", "sft_ratios": ("1",)}, "buys no example at sft_ratio 1"),
        ({"seeds": (1,), "n_seeds": 2}, "seed and seeds are both given"),
    ],
    ids=str,
)
def test_costs_and_seeds_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        plan(**changes)


def test_plans_of_other_prices_are_not_one_experiment():
    plans = [plan(), plan(sft_cost="2")]
    with pytest.raises(UserError, match="sft_cost is 1 and 2 within one experiment"):
        merged(plans)


def test_so_many_seeds_begin_at_the_default_whose_runs_keep_their_names():
    made = plan(n_seeds=3)
    assert made.about["seeds"] == [42, 43, 44]
    assert [stage.name for stage in by_role(made, "sft")] == [
        "tiny_sft-arith-250", "tiny_sft-arith-250_seed-43", "tiny_sft-arith-250_seed-44",
    ]  # fmt: skip
    assert by_role(made, "sft")[0] == by_role(plan(), "sft")[0]
    assert by_role(made, "pt")[2].name == "tiny_sft-arith-250_seed-44_pt-arith-750_seed-44"
    assert made == plan(seeds=(42, 43, 44))


GRID = {
    "sft_ratios": ("0", "0.01", "0.1", "0.25", "0.5", "0.75", "1"), "n_seeds": 3,
    "train_sizes": (500, 1000, 2000, 5000, 10_000), "pft_methods": ("dpo", "kto"),
}  # fmt: skip


def test_a_grid_of_the_size_of_a_paper_shares_every_sft_run_that_can_be():
    made, told_of = budget_plan(budget(**GRID))
    sft = [stage for stage in made.stages if stage.role in ("sft", "reference_sft")]
    pt = [stage for stage in made.stages if stage.role in ("pt", "reference_pt")]
    sizes = {round(float(r) * s) for s in GRID["train_sizes"] for r in GRID["sft_ratios"]} - {0}
    assert len(sft) == 3 * len(sizes) == 60
    assert len(pt) == 3 * 2 * 5 * 6 == 180
    assert len({stage.hash for stage in (*sft, *pt)}) == 240
    assert told_of[-1] == (
        "240 trainings, 60 of SFT and 180 of preference tuning, make what would be 360 without "
        "shared runs: 120 are saved"
    )
