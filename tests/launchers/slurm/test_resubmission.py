"""Submitting again with other resources, what SLURM refuses midway, and two experiments with runs
in common, on a SLURM in memory.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.launchers.slurm.fake_cluster import Spot
from tests.launchers.slurm.small import CHAIN, Small, stage
from tuning.launchers.slurm import ending
from tuning.launchers.slurm.client import Node, Refused
from tuning.launchers.slurm.feasible import generic, require_possible
from tuning.launchers.slurm.ledger import REPORT, Jobs
from tuning.launchers.slurm.resources import Cluster, Resources
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan

pytestmark = pytest.mark.unit


def asking(one: Small, **flags) -> Cluster:
    """The settings of a submission with other flags."""
    return Cluster({"processes": 2, **flags}, environ={}, path=one.settings.path)


def test_what_only_waits_is_replaced_and_what_runs_stays(small):
    one = small(stage("z"), *CHAIN)
    one.stages.moments |= {"a": 9, "z": 9}
    one.cluster.slots = 1
    first = one.submit()
    one.steps(1)
    (running,) = (t.stage.name for t in one.cluster.tasks if t.state == "RUNNING")
    assert one.submit().new == {}
    one.settings = asking(one, mem="2G")
    second = one.submit()
    assert second.queued == second.outdated == {running: first.new[running]}
    others = first.new.keys() - {running}
    assert second.new.keys() == others
    assert second.replaced.keys() - {REPORT.name} == others
    assert {t.mem for t in one.cluster.tasks if t.live and t.stage.name != running} == {"2G"}
    third = one.submit()
    assert (third.new, third.replaced) == ({}, {})
    one.cluster.slots = 3
    one.cluster.run_down()
    assert set(one.states().values()) == {"done"}
    assert not one.cluster.live


def test_children_of_what_is_replaced_wait_for_the_new_jobs(small):
    one = small(stage("a", role="sft"), stage("b", "a"), slots=0)
    one.submit()
    kind = one.settings.path.parent / "kinds.yaml"
    kind.write_text("stages: {sft: {mem: 2G}, pft: {throttle: 2}}\n")
    one.settings = Cluster({"processes": 2}, environ={}, path=kind)
    outcome = one.submit()
    assert outcome.replaced.keys() == {"a"}
    assert outcome.new.keys() == {"a", "b"}
    one.cluster.slots = 1
    one.cluster.run_down()
    assert one.states() == {"a": "done", "b": "done"}


def test_what_slurm_will_not_change_is_cancelled_and_forgotten(small):
    one = small(*CHAIN)
    plain, one.settings = one.settings, asking(one, mem="9G")
    one.cluster.unchangeable = "9G"
    with pytest.raises(Refused, match=r"refuses the jobs of 'small'.*They were cancelled; change"):
        one.submit()
    assert not one.cluster.live
    assert Jobs(one.stages.folder).arrays() == []
    one.settings = plain
    assert one.finish() == dict.fromkeys("abc", "done")


@pytest.mark.parametrize("where", ["submit", "depend"])
def test_what_waited_is_queued_again_where_slurm_refuses_what_replaces_it(small, where):
    """The check beforehand let it pass; the first stage runs, and its child asks for the same."""
    one = small(stage("z"), *CHAIN)
    one.cluster.slots = 1
    one.stages.moments |= {"a": 30, "z": 30}
    one.submit()
    one.steps(2)
    (runs,) = (t.stage.name for t in one.cluster.tasks if t.state == "RUNNING")
    plan, plain = one.stages.folder.joinpath("plan.json").read_bytes(), one.settings
    one.settings = asking(one, mem="9G")
    if where == "submit":
        one.cluster.refusals = [2]
    else:
        one.cluster.unchangeable = "9G"
    with pytest.raises(Refused, match=r"What waited is queued again, as it was\.$"):
        one.submit()
    assert one.stages.folder.joinpath("plan.json").read_bytes() == plan
    live = one.cluster.live
    assert live.keys() == {"z", "a", "b", "c", REPORT.name}
    assert {task.mem for task in live.values()} == {""} and live[runs].state == "RUNNING"
    one.settings = plain
    assert one.submit().new == {}
    one.cluster.slots = 3
    one.cluster.run_down()
    assert one.states() == dict.fromkeys("zabc", "done") and not one.cluster.live


def test_what_cannot_be_queued_again_is_said(small):
    one = small(*CHAIN, slots=0)
    one.submit()
    plain, one.settings = one.settings, asking(one, mem="9G")
    one.cluster.refusals = [1, 2]
    with pytest.raises(Refused, match=r"What waited was cancelled, and cannot be queued again: "):
        one.submit()
    one.settings, one.cluster.slots = plain, 3
    assert one.finish() == dict.fromkeys("abc", "done")


def test_what_the_cluster_could_never_run_changes_nothing(small):
    one = small(*CHAIN, slots=0)
    one.cluster.impossible = "9G"
    plain, large = one.settings, asking(one, mem="9G")
    one.settings = large
    with pytest.raises(Refused, match="SLURM cannot run stages of kind pft: mem is 9G, and no"):
        one.submit()
    assert not one.cluster.tasks and not one.stages.folder.joinpath("plan.json").exists()
    one.settings = plain
    before = one.submit().new
    one.settings = large
    with pytest.raises(Refused):
        one.submit()
    one.settings = plain
    assert one.submit().queued == before


def test_what_a_policy_is_against_replaces_nothing(small):
    one = small(*CHAIN, slots=0)
    plain = one.settings
    before = one.submit().new
    one.settings, one.cluster.forbidden = asking(one, mem="9G"), "9G"
    with pytest.raises(Refused, match=r"cannot run stages of kind pft: no node.*9G"):
        one.submit()
    one.settings = plain
    assert one.submit().queued == before


def test_a_refusal_of_more_stages_leaves_what_was_queued_as_it_was(small):
    first = stage("a"), stage("b", "a")
    one = small(*first, slots=0)
    one.submit()
    kept = one.stages.folder.joinpath("plan.json").read_bytes()
    one.cluster.refusals = [1]
    with pytest.raises(Refused):
        one.submit(Plan(experiment="small", stages=(*first, stage("c", "b"))))
    assert one.stages.folder.joinpath("plan.json").read_bytes() == kept
    assert one.cluster.live.keys() == {"a", "b", REPORT.name}
    assert one.cluster.live[REPORT.name].reason == "Dependency"
    one.cluster.slots = 3
    one.cluster.run_down()
    assert set(one.states().values()) == {"done"} and not one.cluster.live


def test_the_report_that_another_user_submitted_stays(small):
    first = stage("a"), stage("b", "a")
    one = small(*first, slots=0)
    one.submit()
    jobs = Jobs(one.stages.folder)
    arrays = jobs.arrays()
    for array in arrays:
        array.user = 1
    jobs.write(arrays)
    theirs = one.cluster.live[REPORT.name]
    one.settings = asking(one, mem="2G")
    one.submit(Plan(experiment="small", stages=(*first, stage("c"))))
    assert theirs.live


def slow_to_end(one: Small) -> None:
    """Start the first stage; jobs that end are on their way out for a moment from now on."""
    one.steps(2)
    one.cluster.rng.random = lambda: 0.9


def test_what_was_cancelled_and_is_still_ending_is_submitted_again(small):
    one = small(*CHAIN)
    one.stages.moments["a"] = 9
    first = one.submit().new["a"]
    slow_to_end(one)
    one.cluster.end_by_force([task.id for task in one.cluster.live.values()])
    assert one.cluster.live["a"].state == "COMPLETING"
    outcome = one.submit()
    assert list(outcome.new) == ["a", "b", "c"] and outcome.new["a"] != first
    one.cluster.run_down()
    assert one.states() == dict.fromkeys("abc", "done")


def test_what_goes_back_into_the_queue_is_not_submitted_beside_itself(small):
    one = small(stage("a"))
    one.stages.events["a"] = ["again"]
    first = one.submit().new["a"]
    slow_to_end(one)
    while one.cluster.live["a"].state != "COMPLETING":
        one.steps(1)
    assert one.submit().queued == {"a": first}


def test_what_does_not_end_in_time_stays_and_is_named(small, monkeypatch):
    one = small(*CHAIN)
    one.stages.moments["a"] = 9
    first = one.submit().new["a"]
    slow_to_end(one)
    one.cluster.end_by_force([first.id])
    monkeypatch.setattr(one.cluster, "pause", lambda seconds: None)
    monkeypatch.setattr(ending, "WAIT_SECONDS", 0.0)
    outcome = one.submit()
    assert (outcome.new, outcome.ending) == ({}, [first.id])


SFT = stage("sft", role="sft")
FORK = stage("fork-remaining", "sft", role="fork", parent="sft", sweetspot="ppl-2.0",
             total_data=100)  # fmt: skip


def second(one: Small, *stages) -> Plan:
    """Another experiment on the same cluster and home."""
    return Plan(experiment="second", stages=stages)


def test_a_second_experiment_depends_on_the_run_of_the_first(small):
    one = small(SFT, stage("b", "sft"), slots=0)
    first = one.submit()
    plan = second(one, replace(SFT, total_data=7), stage("c", "sft"))
    outcome = one.submit(plan)
    assert list(outcome.new) == ["c"]
    assert outcome.shared["sft"].task == first.new["sft"]
    assert outcome.shared["sft"].experiment == "small"
    again = one.submit(plan)
    assert (again.new, list(again.queued), list(again.shared)) == ({}, ["c"], ["sft"])
    one.cluster.slots = 1
    one.stages.plan = Plan(experiment="all", stages=(*one.plan.stages, stage("c", "sft")))
    one.cluster.run_down()
    assert one.stages.done == {"sft", "b", "c"}
    assert one.cluster.submitted.count("sft") == 1
    assert one.submit(plan).ended.keys() == {"sft", "c"}


def test_a_dry_run_shows_no_job_for_what_another_experiment_has_queued(small):
    one = small(SFT, slots=0)
    task = one.submit().new["sft"]
    made = Submission(second(one, SFT, stage("c", "sft")), one.settings, one.cluster)
    assert made.look()["sft"].task == task
    assert [array.stages for array, _ in made.preview(9)] == [["c"], [REPORT.name]]
    assert made.words("c") == f"afterok sft ({task.id} of experiment small)"
    more = replace(SFT, phases=("train", "infer"), evaluation_hash="e" * 64)
    made = Submission(second(one, more), one.settings, one.cluster)
    assert made.look() == {}
    assert made.preview(9)[0][0].stages == ["sft"]
    assert made.words("sft") == f"afterany {task.id}, the same run in small"
    made = Submission(second(one, SFT), one.settings, one.cluster)
    made.look()
    assert [array.stages for array, _ in made.preview(9)] == [[REPORT.name]]


def test_a_stage_that_does_more_than_the_first_experiment_runs_after_it(small):
    one = small(SFT, slots=0)
    one.submit()
    more = replace(SFT, phases=("train", "infer"), evaluation_hash="e" * 64)
    one.cluster._require_once = lambda stage: None  # the same run twice is what is wanted here
    outcome = one.submit(second(one, more))
    assert list(outcome.new) == ["sft"]
    number = outcome.new["sft"].number
    told = [line[6:] for line in one.cluster.history if f"depend {number}_" in line]
    assert told == [f"depend {number}_[0] afterany:1"]


def test_children_wait_for_the_job_by_which_another_experiment_replaced_the_one_they_follow(small):
    one = small(SFT, slots=0, period=100)
    one.submit()
    plan = second(one, SFT, stage("c", "sft"))
    child = one.submit(plan).new["c"]
    one.settings, plain = asking(one, mem="2G"), one.settings
    number = one.submit().new["sft"].number
    one.settings = plain
    assert one.submit(plan).queued == {"c": child}
    assert one.cluster.live["c"].conditions == [("afterok", number, None)]
    report = next(t for t in one.cluster.tasks if t.live and t.token.startswith("second.1") and
                  t.stage.name == REPORT.name)  # fmt: skip
    assert report.conditions == [("afterany", n, None) for n in (child.number, number)]


def test_a_second_experiment_trains_a_run_that_the_first_one_gave_up(small):
    one = small(SFT, slots=0)
    one.submit()
    plan = second(one, SFT, stage("c", "sft"))
    one.submit(plan)
    one.cluster.end_by_force([one.cluster.live["sft"].id])
    one.steps(3)
    assert one.submit(plan).new.keys() == {"sft", "c"}


def test_forks_of_a_second_experiment_are_let_go_by_the_sft_job_of_the_first(small):
    one = small(SFT)
    one.stages.spots["sft", "ppl-2.0"] = Spot(at=4, used=40)
    one.stages.moments["sft"] = 30
    one.submit()
    one.submit(second(one, SFT, FORK))
    one.stages.plan = Plan(experiment="all", stages=(SFT, FORK))
    one.steps(15)
    assert one.stages.done == {FORK.name}
    assert one.cluster.live["sft"].state == "RUNNING"


def node(**values) -> Node:
    return Node(**{"partition": "low", "default": True, "cpus": 8, "mem": 64_000,
                   "gres": "gpu:a100:4(S:0-1)", "up": True} | values)  # fmt: skip


class Asked:
    """A cluster that refuses everything in these words."""

    def __init__(self, refusal: str, *nodes: Node) -> None:
        self.refusal = lambda script, **options: refusal
        self.nodes = lambda: list(nodes)


NOT_AVAILABLE = "Requested node configuration is not available"


@pytest.mark.parametrize(
    ("values", "nodes", "told"),
    [
        ({"gres": "gpu:h100:1"}, [node()], "gres is gpu:h100:1, and no node of partition low has"),
        ({"gres": "gpu:5"}, [node(up=False)], "has more than gpu:4; change gres (--gres, or in"),
        ({"mem": "100G"}, [node(), node(partition="big", default=False, mem=999_999)],
         "mem is 100G, and no node of partition low has more than 64000M"),
        ({"mem": "100G", "partition": "low,big"}, [node(), node(partition="big", mem=99_999)],
         "mem is 100G, and no node of partition low, big has more than 99999M"),
        ({"nodes": 3}, [node(), node()], "nodes is 3, and the partition has 2"),
        ({"time": "30", "options": ("--exclusive",)}, [node()],
         "no node can give nodes 1, cpus 1, time 30, --exclusive (flags, or cluster.yaml)"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_setting_that_is_too_large(values, nodes, told):
    with pytest.raises(Refused) as error:
        require_possible(Asked(NOT_AVAILABLE, *nodes), "sft", Resources(**values), "")
    assert told in str(error.value)
    assert str(error.value).endswith(f"SLURM says: {NOT_AVAILABLE}.")


def test_what_fits_a_node_that_is_down_is_not_refused():
    one = Asked(NOT_AVAILABLE, node(up=False), node(cpus=2, gres="(null)"))
    require_possible(one, "sft", Resources(cpus=8, gres="gpu:2"), "")


@pytest.mark.parametrize(
    ("refusal", "values", "told"),
    [
        ("invalid partition specified: x", {"partition": "x"}, "partition is x; change partition"),
        ("Invalid qos specification", {"qos": "fast"}, "qos is fast; change qos (--qos, or in"),
        ("Invalid account or account/partition combination specified", {"partition": "x"},
         "account is not given"),
        ("Invalid generic resource (gres) specification", {"gres": "tpu:1"}, "gres is tpu:1"),
        ("Invalid feature specification", {"constraint": "a100"}, "constraint is a100"),
    ],
)  # fmt: skip
def test_a_refusal_in_other_words_names_the_setting_too(refusal, values, told):
    with pytest.raises(Refused) as error:
        require_possible(Asked(refusal), "sft", Resources(**values), "")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(null)", {}), ("", {}), ("gpu", {"gpu": 1}), ("gpu:2", {"gpu": 2}),
        ("gpu:a100:2(S:0),gpu:h100:1", {"gpu": 3, "gpu:a100": 2, "gpu:h100": 1}),
        ("gres/gpu:a100=2,tpu:1", {"gpu": 2, "gpu:a100": 2, "tpu": 1}),
    ],
)  # fmt: skip
def test_generic_resources_are_counted_with_and_without_their_types(text, found):
    assert generic(text) == found
