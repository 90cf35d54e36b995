"""The experiment as a list of stages: order, parents, phases, and what a change changes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.small_site import COLLECTIONS, use
from tuning import config as site
from tuning import run_dpo, run_inference, run_pretrain, run_sft, run_sweetspot_pipeline
from tuning.experiments.render import command
from tuning.experiments.sweetspot import Wanted, sweetspot_plan
from tuning.flags import given
from tuning.phases.work import evaluation_of, run_of
from tuning.plan import Plan, Stage, read_stage, write_stage
from tuning.report.build import write_report
from tuning.runs.errors import StageFailed, UserError
from tuning.runs.rundir import Identity, claim
from tuning.training import passk_pipeline, ppl_pipeline
from tuning.training.config_training import SFT_PARTS, sft_config

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def plan(**changes) -> Plan:
    wanted = {
        "model": "tiny", "dataset": "arith", "task": "math", "total_data": 1000, "sft_data": 500,
        "do_sft": True, "do_dpo": True, "do_inference": True, "do_evaluation": True,
    }  # fmt: skip
    thresholds = changes.pop("thresholds", (2.0, 1.6))
    rules = {} if thresholds is None else {"perplexity_thresholds": thresholds}
    for name, setting in (("patience", "perplexity_patience"), ("early_stop", "early_stop")):
        if name in changes:
            rules[setting] = changes.pop(name)
    changes["sft_values"] = rules | changes.get("sft_values", {})
    return sweetspot_plan(Wanted(**(wanted | changes)))


def roles(made: Plan) -> list[str]:
    return [stage.role for stage in made.stages]


def by_role(made: Plan, role: str) -> list[Stage]:
    return [stage for stage in made.stages if stage.role == role]


def hashes(made: Plan, *wanted: str) -> list[tuple[str, str, str | None]]:
    return [(s.name, s.hash, s.evaluation_hash) for s in made.stages if s.role in wanted]


ROLES = ["pretrain", "base", "sft", "sweetspot", "fork", "reference_sft", "reference_pt"]
SFT_NAME = "tiny_sft-arith-500"


def test_the_stages_stand_in_order_with_their_names():
    made = plan(methods=("dpo", "kto"))
    sft = by_role(made, "sft")[0]
    named = f"{SFT_NAME}-{sft.hash[:8]}"
    assert [(stage.role, stage.name) for stage in made.stages] == [
        ("pretrain", "tiny"),
        ("base", "tiny-base"),
        ("sft", named),
        ("sweetspot", f"{named}_sweetspot-ppl-2.0"),
        ("sweetspot", f"{named}_sweetspot-ppl-1.6"),
        ("fork", "tiny_sweetspot-ppl-2.0_dpo-arith-remaining"),
        ("fork", "tiny_sweetspot-ppl-2.0_kto-arith-remaining"),
        ("fork", "tiny_sweetspot-ppl-1.6_dpo-arith-remaining"),
        ("fork", "tiny_sweetspot-ppl-1.6_kto-arith-remaining"),
        ("reference_sft", "tiny_sft-arith-1000"),
        ("reference_pt", "tiny_pt-arith-1000"),
        ("reference_pt", "tiny_pt-arith-1000_kto"),
    ]
    assert len({stage.name for stage in made.stages}) == len(made.stages)


def test_targets_of_pass_at_k_are_forked_beside_those_of_perplexity():
    """Without thresholds of its own, an experiment that asks for pass@k has none of perplexity; and
    the reference run samples nothing.
    """
    targets = {"pass_at_k_targets": (0.5, 0.3), "pass_at_k_samples": 4}
    made = plan(sft_values=targets)
    labels = ["ppl-2.0", "ppl-1.6", "pass@1-0.30", "pass@1-0.50"]
    assert [stage.sweetspot for stage in by_role(made, "fork")] == labels
    assert made.about["rules"] == labels
    name = "tiny_sweetspot-pass@1-0.30_dpo-arith-remaining-"
    assert by_role(made, "fork")[2].name.startswith(name)
    assert by_role(made, "reference_sft") == by_role(plan(), "reference_sft")
    alone = plan(thresholds=None, sft_values=targets)
    assert [stage.sweetspot for stage in by_role(alone, "sweetspot")] == labels[2:]


@pytest.mark.parametrize(
    ("script", "rules"),
    [
        (passk_pipeline, ["pass@1-0.10", "pass@1-0.20"]),
        (ppl_pipeline, ["ppl-2.0", "ppl-1.6", "ppl-1.4"]),
    ],
)
def test_pipelines_by_their_own_scripts_do_all_and_train_no_references(script, rules, capsys):
    here = ["--launcher", "local", "--dry_run"]
    assert script.main(here) == 0
    told = capsys.readouterr().out
    assert all(f"tiny_sweetspot-{rule}_dpo-arith-remaining" in told for rule in rules)
    assert told.count("--do_evaluation") == 2 + 2 * len(rules) and "_pt-arith" not in told
    assert script.main([*here, "--pft_method", "kto", "--pass-at-k-targets=0.4"]) == 0
    assert "sweetspot-pass@1-0.40_kto-arith" in capsys.readouterr().out
    with pytest.raises(UserError, match="the following arguments are required: --dataset"):
        script.main([*here, "--model", "tiny"])


def test_parents_come_first_and_are_the_right_ones():
    made = plan(methods=("dpo", "grpo"))
    sft = by_role(made, "sft")[0].name
    expected = {
        "pretrain": (), "base": ("tiny",), "sft": ("tiny",), "sweetspot": (sft,), "fork": (sft,),
        "reference_sft": ("tiny",), "reference_pt": ("tiny",),
    }  # fmt: skip
    seen: set[str] = set()
    for stage in made.stages:
        assert stage.parents == expected[stage.role]
        assert set(stage.parents) <= seen
        seen.add(stage.name)
    continued = {stage.role: stage.parent for stage in made.stages}
    assert continued == dict.fromkeys(ROLES) | {"sweetspot": sft, "fork": sft}


@pytest.mark.parametrize(
    ("asked", "phases"),
    [
        ({}, ("infer", "evaluate")),
        ({"do_evaluation": False}, ("infer",)),
        ({"do_inference": False}, ("evaluate",)),
        ({"do_inference": False, "do_evaluation": False}, ()),
    ],
)
def test_phases_are_those_that_were_asked_for(asked, phases):
    made = plan(**asked)
    for stage in made.stages:
        trains = stage.role in ("pretrain", "sft", "fork", "reference_sft", "reference_pt")
        evaluates = stage.role != "pretrain"
        assert stage.phases == (("train",) if trains else ()) + (phases if evaluates else ())
        assert stage.wide == (stage.role == "pretrain")
        flags = set(command(stage)) if stage.has_work else set()
        assert ("--do_training" in flags) == (trains and stage.role != "pretrain")
        if evaluates and stage.has_work:
            assert ("--do_inference" in flags) == ("infer" in phases)
            assert ("--do_evaluation" in flags) == ("evaluate" in phases)
        assert stage.has_work == (trains or bool(phases))


def test_every_command_is_one_that_its_entry_point_takes():
    parsers = {
        "run_pretrain.py": run_pretrain, "run_sft.py": run_sft, "run_dpo.py": run_dpo,
        "run_inference.py": run_inference,
    }  # fmt: skip
    made = plan(
        methods=("dpo", "kto", "grpo"),
        patience=("2:0.02",),
        early_stop=False,
        sft_values={"seed": 3, "lora_dropout": 0.1, "target_modules": ("q_proj",)},
        pft_values={"seed": 3, "target_modules": ("q_proj",)},
        evaluation_values={"prompts": 40, "k_values": (1, 3)},
    )
    for stage in made.stages:
        script, *flags = command(stage)
        parsers[script].parser().parse_args(flags)


def test_the_commands_of_sft_lead_to_the_same_hash():
    made = plan(sft_values={"seed": 3}, patience=("2:0.02",), early_stop=False)
    for stage in by_role(made, "sft") + by_role(made, "reference_sft"):
        args = run_sft.parser().parse_args(command(stage)[1:])
        config = sft_config(
            model=args.model, dataset=args.dataset, task=args.task, train_size=args.train_size,
            values=given(args, SFT_PARTS),
        )  # fmt: skip
        assert (config.hash, config.run_name) == (stage.hash, stage.name)


def test_stages_carry_the_configs_of_their_runs_and_evaluations(tmp_path):
    made = plan(methods=("dpo", "kto", "grpo"), sft_values={"seed": 3}, pft_values={"seed": 4})
    for stage in made.stages:
        write_stage(tmp_path / "stage.json", stage)
        again = read_stage(tmp_path / "stage.json")
        assert again == stage
        if stage.trains:
            assert run_of(again).hash == stage.hash
            assert run_of(again).training.seed == stage.seed
        if stage.role != "pretrain":
            assert evaluation_of(again).hash == stage.evaluation_hash


def test_a_stage_that_another_version_planned_is_not_started():
    (stage,) = by_role(plan(), "reference_sft")
    changed = {**stage.run, "training": {**stage.run["training"], "learning_rate": 0.5}}
    with pytest.raises(StageFailed, match="was planned by another version of the code"):
        run_of(replace(stage, run=changed))


def test_sizes_and_seeds_are_told():
    made = plan(sft_values={"seed": 3}, pft_values={"seed": 4})
    assert {s.role: (s.train_size, s.total_data, s.seed) for s in made.stages} == {
        "pretrain": (None, None, 0),
        "base": (None, None, None),
        "sft": (500, None, 3),
        "sweetspot": (None, None, None),
        "fork": (None, 1000, 4),
        "reference_sft": (1000, None, 3),
        "reference_pt": (1000, 1000, 4),
    }


def test_patience_makes_sweetspots_and_forks_too():
    made = plan(thresholds=(), patience=("2:0.02",))
    assert [s.sweetspot for s in made.stages if s.sweetspot] == ["ppl-2@0.02"] * 2
    made = plan(patience=("2:0.02",))
    assert [s.sweetspot for s in by_role(made, "fork")] == ["ppl-2.0", "ppl-1.6", "ppl-2@0.02"]


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"references": False}, {"reference_sft", "reference_pt"}),
        ({"do_dpo": False}, {"fork", "reference_pt"}),
        ({"do_sft": False}, {"reference_sft"}),
        ({"do_dpo": False, "references": False}, {"fork", "reference_pt", "reference_sft"}),
        ({"model": "big"}, {"pretrain"}),
    ],
)
def test_what_is_not_asked_for_is_left_out(changes, without):
    assert set(roles(plan(**changes))) == set(ROLES) - without


def test_forks_alone_stand_on_an_sft_run_that_is_not_trained():
    full, made = plan(), plan(do_sft=False)
    (sft,) = by_role(made, "sft")
    assert "train" not in sft.phases and "--do_training" not in command(sft)
    assert sft.hash == by_role(full, "sft")[0].hash
    assert hashes(made, "fork") == hashes(full, "fork")


def test_a_model_of_the_hub_has_no_parent():
    made = plan(model="big")
    assert roles(made)[0] == "base"
    assert by_role(made, "base")[0].name == "big"
    assert by_role(made, "base")[0].parents == by_role(made, "sft")[0].parents == ()


def test_the_template_that_was_asked_for_is_that_of_the_base_too():
    before, made = (
        plan(model="org/plain"),
        plan(
            model="org/plain",
            model_values={"chat_template": "chatml"},
        ),
    )
    assert hashes(made, "base") != hashes(before, "base")
    assert "chatml" in command(by_role(made, "base")[0])


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"sft_values": {"micro_batch_size": 8}}, ()),
        ({"pft_values": {"micro_batch_size": 8}}, ()),
        ({"sft_values": {"save_steps": 3}, "pft_values": {"save_steps": 3}}, ()),
        ({"experiment": "other"}, ()),
        ({"pft_values": {"beta": 0.5}}, ("fork", "reference_pt")),
        ({"pft_values": {"seed": 1}}, ("fork", "reference_pt")),
        ({"pft_values": {"max_seq_length": 96}}, ("fork", "reference_pt")),
        ({"sft_values": {"learning_rate": 1e-3}}, ("sft", "sweetspot", "fork", "reference_sft")),
        ({"sft_values": {"max_seq_length": 96}}, ("sft", "sweetspot", "fork", "reference_sft")),
        ({"sft_data": 400}, ("sft", "sweetspot", "fork")),
        ({"total_data": 1001}, ("fork", "reference_sft", "reference_pt")),
        ({"early_stop": False}, ("sft", "sweetspot", "fork")),
    ],
    ids=str,
)
def test_one_change_changes_only_what_depends_on_it(changes, changed):
    before, after = plan(), plan(**changes)
    for role in ROLES:
        assert (hashes(before, role) != hashes(after, role)) == (role in changed), role
    assert (before.experiment != after.experiment) == bool(changed or "experiment" in changes)


def test_a_setting_of_one_method_leaves_the_others_alone():
    def of(method: str, made: Plan) -> list[tuple[str, str]]:
        return [(s.name, s.hash) for s in made.stages if s.pft_method == method]

    methods = ("dpo", "kto", "grpo")
    before, after = (plan(methods=methods, pft_values=v) for v in ({}, {"num_generations": 4}))
    assert [m for m in methods if of(m, before) != of(m, after)] == ["grpo"]


def test_other_sampling_changes_evaluations_only():
    before, after = plan(), plan(evaluation_values={"temperature": 1.0})
    assert [(s.name, s.hash) for s in before.stages] == [(s.name, s.hash) for s in after.stages]
    for old, new in zip(before.stages[1:], after.stages[1:], strict=True):
        assert old.evaluation_hash != new.evaluation_hash
        assert (old.evaluation_suffix, new.evaluation_suffix) == (
            "",
            f"_eval-{new.evaluation_hash[:8]}",
        )
    assert before.experiment != after.experiment


def test_an_experiment_has_a_name_of_its_own_or_a_given_one():
    assert plan().experiment == plan().experiment
    assert plan().experiment.startswith("tiny_arith_1000-")
    assert len(plan().experiment) == len("tiny_arith_1000-") + 6
    assert plan(experiment="mine").experiment == "mine"
    assert plan(model="org/name").experiment.startswith("org--name_arith_1000-")


def test_a_name_that_is_taken_moves_the_stage_and_its_children():
    identity = Identity(
        run_name="tiny_sft-arith-1000", kind="sft", hash="f" * 64, hashed={}, settings={}
    )
    with claim(site.models_dir(), identity):
        pass
    made = plan()
    (reference,) = by_role(made, "reference_sft")
    assert reference.name == f"tiny_sft-arith-1000-{reference.hash[:8]}"


def test_a_plan_comes_back_from_json_and_tells_what_it_is_about():
    made = plan(task="gsm8k", methods=("dpo", "kto"))
    assert Plan.from_json(made.to_json()) == made
    assert made.about == {
        "kind": "sweetspot", "models": ["tiny"], "sources": ["run:tiny"], "dataset": "arith",
        "task": "math", "train_sizes": [1000], "sft_data": [500], "rules": ["ppl-2.0", "ppl-1.6"],
        "methods": ["dpo", "kto"], "seeds": [42], "k_values": [1, 2, 4], "prompts": 50,
        "samples": 4, "temperature": 0.7,
        "model_of": {stage.name: "tiny" for stage in made.stages},
    }  # fmt: skip


def test_nothing_is_written(home):
    plan()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tyni"}, "unknown model 'tyni'.*Did you mean 'tiny'"),
        ({"dataset": "aritt"}, "unknown dataset 'aritt'.*Did you mean 'arith'"),
        ({"task": "maths"}, "unknown task 'maths'.*Did you mean 'math'"),
        ({"task": "instruction"}, "task 'instruction' has no dataset 'arith'"),
        ({"methods": ("gpo",)}, "unknown preference method 'gpo'.*Did you mean 'grpo'"),
        ({"methods": ("dpo", "dpo")}, "names a method twice: dpo dpo"),
        ({"do_sft": False, "do_dpo": False}, "nothing to do: give --do_sft, --do_dpo or both"),
        ({"sft_data": 1001}, "sft_data 1001 is above total_data 1000"),
        ({"sft_data": 0}, "sft_data is 0; it must be at least 1"),
        ({"total_data": 0}, "sft_data 500 is above total_data 0"),
        ({"total_data": 10_001}, "total_data is 10001, but the preference pool of 'arith' has"),
        (
            {"total_data": 10_001, "do_dpo": False},
            "total_data is 10001, but the sft pool of 'arith' has only",
        ),
        ({"thresholds": (2.0, 0.0)}, r"perplexity threshold 0\.0 cannot be reached"),
        ({"thresholds": (2.0, 2.0)}, r"names 2\.0 more than once"),
        ({"thresholds": ()}, "no sweetspot is defined"),
        ({"patience": ("2",)}, "write EVALUATIONS:DECREASE"),
        ({"patience": ("2:0.02", "2:0.020")}, "more than once"),
        ({"evaluation_values": {"prompts": 1001}}, "prompts is 1001, but the test pool of 'arith'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(home, changes, message):
    with pytest.raises(UserError, match=message):
        plan(**changes)
    assert list(home.iterdir()) == []


def test_a_budget_beyond_the_sft_pool_is_fine_without_references(monkeypatch, tmp_path):
    """Only the reference run trains SFT on the whole budget."""
    root = tmp_path / "mine"
    root.mkdir()
    use(monkeypatch, root, COLLECTIONS)
    sizes = {"sft": 20, "pt": 100, "va": 1, "te": 50}
    for pool, size in sizes.items():
        rows = [
            {"prompt": f"{pool}{n}", "completion": "c", "chosen": "a", "rejected": "b", "answer": 1}
            for n in range(size)
        ]
        (root / f"{pool}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {"dataset": "mine", "total_data": 100, "sft_data": 20}
    assert "fork" in roles(plan(**wanted, references=False))
    with pytest.raises(
        UserError, match="total_data is 100, but the sft pool of 'mine' has only 20"
    ):
        plan(**wanted)


def test_sft_on_the_engine_is_what_forks_start_from():
    made = plan(sft_values={"trainer": "engine"})
    plain = plan()
    assert roles(made) == roles(plain)
    for role in ("sft", "reference_sft", "fork", "sweetspot"):
        assert not set(hashes(made, role)) & set(hashes(plain, role)), role
    assert hashes(made, "base", "pretrain", "reference_pt") == hashes(
        plain, "base", "pretrain", "reference_pt"
    )
    for stage in [*by_role(made, "sft"), *by_role(made, "reference_sft")]:
        assert ("--trainer", "engine") in pairwise(command(stage))
        assert stage.joinable


def test_the_pipeline_takes_the_settings_of_the_engine(capsys):
    words = (
        "--model tiny --dataset arith --task math --total_data 1000 --sft_data 500 --do_sft "
        "--do_dpo --trainer engine --sep_size 2 --osft --dry_run --launcher local"
    )
    assert run_sweetspot_pipeline.main(words.split()) == 0
    shown = capsys.readouterr().out
    assert shown.count("--sep_size 2 --osft True --trainer engine") == 2


def small_pools(root: Path, **sizes: int) -> None:
    """Pools of the dataset `mine`; those of no size are not in collections.yaml."""
    names = {"sft": "sft", "preference": "pt", "validation": "va", "test": "te"}
    files = {pool: f"{names[pool]}.jsonl" for pool, size in sizes.items() if size}
    entry = ", ".join(f"{pool}: {file}" for pool, file in files.items())
    (line,) = (line for line in COLLECTIONS.splitlines() if line.startswith("  mine: "))
    use_text = COLLECTIONS.replace(line, f"  mine: {{loader: jsonl, {entry}}}")
    (root / "collections.yaml").write_text(use_text)
    site._load.cache_clear()
    for pool, file in files.items():
        rows = [{"prompt": f"{pool}{n}", "completion": "c"} for n in range(sizes[pool])]
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("prompts", [0, 1])
def test_without_an_evaluation_nothing_is_asked_of_test_prompts(home, capsys, prompts):
    small_pools(home.parent, sft=20, validation=1, test=prompts)
    words = ["--model", "tiny", "--dataset", "mine", "--task", "math", "--total_data", "20",
             "--sft_data", "10", "--do_sft"]  # fmt: skip
    for launcher in ("local", "slurm"):
        flags = [*words, "--dry_run", "--launcher", launcher]
        assert run_sweetspot_pipeline.main(flags) == 0
        assert "run_sft.py" in capsys.readouterr().out
    chosen = {"dataset": "mine", "total_data": 20, "sft_data": 10, "do_dpo": False}
    made = plan(**chosen, do_inference=False, do_evaluation=False)
    assert roles(made) == ["pretrain", "base", "sft", "sweetspot", "sweetspot", "reference_sft"]
    assert {stage.evaluation is None for stage in made.stages[1:]} == {prompts == 0}
    assert {stage.task for stage in made.stages[1:]} == {"math"}
    write_report(made, home)
    with pytest.raises(UserError, match="has no test pool" if not prompts else "lacks answer|only"):
        plan(**chosen)
    with pytest.raises(UserError, match="has no test pool" if not prompts else "prompts is 50, bu"):
        run_sweetspot_pipeline.main([*words, "--prompts", "50", "--dry_run"])


def test_a_file_that_no_stage_reads_may_be_missing(home):
    small_pools(home.parent, sft=20, preference=20, validation=1, test=1)
    for file in ("pt.jsonl", "te.jsonl"):
        (home.parent / file).unlink()
    chosen = {"dataset": "mine", "total_data": 20, "sft_data": 10}
    chosen |= {"do_inference": False, "do_evaluation": False}
    made = plan(**chosen, do_dpo=False)
    assert {stage.evaluation for stage in made.stages} == {None}
    with pytest.raises(UserError, match=r"pt\.jsonl' cannot be read \(No such file"):
        plan(**chosen)
    with pytest.raises(UserError, match=r"te\.jsonl' cannot be read \(No such file"):
        plan(**chosen | {"do_evaluation": True}, do_dpo=False)
