"""The rules of sweetspots as plain objects."""

from __future__ import annotations

import json

import pytest

from tuning.runs.errors import UserError
from tuning.sweetspots.rules import Patience, Rules, Threshold, brief, named, parse, pass_at

pytestmark = pytest.mark.unit


def thresholds(*values: float) -> list[Threshold]:
    return [Threshold(value=value) for value in values]


def watch(rules: Rules, history: list[float], every: int = 5) -> list[list[str]]:
    """The labels that fire with each measurement; the first is that of the base."""
    return [
        [rule.label for rule in rules.observe(step * every, perplexity)]
        for step, perplexity in enumerate(history)
    ]


def fired(rule: Patience, history: list[float]) -> int | None:
    """With which measurement after the base a rule fires first."""
    found = watch(Rules([rule]), history)
    return next((i for i, labels in enumerate(found) if labels), None)


def test_labels_and_values():
    assert [rule.label for rule in thresholds(2, 1.25)] == ["ppl-2.0", "ppl-1.25"]
    rule = Patience(evaluations=2, change=0.02)
    assert (rule.label, rule.setting, rule.words) == ("ppl-2@0.02", "2@0.02", "patience 2@0.02")
    assert rule.metadata() == {"threshold_type": "perplexity_patience", "threshold_value": "2@0.02"}
    threshold = Threshold(value=2)
    assert (threshold.setting, threshold.words) == ("2.0", "ppl 2.0")
    assert threshold.metadata() == {"threshold_type": "perplexity", "threshold_value": 2.0}


def test_those_of_pass_at_k_name_their_k_and_have_two_decimals():
    rules = [Threshold(value=value, measure=pass_at(1)) for value in (0.3, 0.05, 1, 0.125)]
    labels = ["pass@1-0.30", "pass@1-0.05", "pass@1-1.00", "pass@1-0.125"]
    assert [rule.label for rule in rules] == labels == [brief(rule) for rule in rules]
    assert (rules[0].words, rules[0].spelled_out) == ("pass@1 0.30", "pass@1 0.30")
    assert rules[0].metadata() == {"threshold_type": "pass@1", "threshold_value": 0.3}
    plateau = Patience(evaluations=2, change=0.02, measure=pass_at(8))
    assert (plateau.label, plateau.words) == ("pass@8-2@0.02", "pass@8 patience 2@0.02")
    assert named("pass@1-.3", rules, "sft") == rules[0]
    assert "(best 0.2999)" in rules[0].missed(0.2999)


def test_pass_at_k_fires_as_it_rises_and_at_a_plateau():
    rules = Rules(
        [
            Threshold(value=0.3, measure=pass_at(1)),
            Threshold(value=0.5, measure=pass_at(1)),
            Patience(evaluations=2, change=0.05, measure=pass_at(1)),
        ]
    )
    found = watch(rules, [0.1, 0.3, 0.28, 0.31, 0.5])
    assert found == [[], ["pass@1-0.30"], [], ["pass@1-2@0.05"], ["pass@1-0.50"]]
    assert rules.finished
    missed = Rules([Threshold(value=0.9, measure=pass_at(1))])
    watch(missed, [0.1, 0.4, 0.2])
    assert missed.outcome() == {"pass@1-0.90": {"state": "unreached", "best": 0.4}}


@pytest.mark.parametrize(
    "rule",
    [
        *thresholds(2, 1.25, 1e300, 0.1 + 0.2, 1.0000001),
        *(
            Threshold(value=v, measure=pass_at(k))
            for v, k in ((0.3, 1), (1e-7, 1), (0.1 + 0.2, 64))
        ),
        Patience(evaluations=2, change=0.1, measure=pass_at(16)),
        Patience(evaluations=2, change=0.02),
        Patience(evaluations=10, change=1e-7),
    ],
    ids=lambda rule: rule.label,
)
def test_a_label_is_read_back_as_its_rule(rule):
    assert parse(rule.label) == rule


@pytest.mark.parametrize(
    "label",
    [
        "",
        "2.0",
        "ppl",
        "ppl-",
        "ppl-x",
        "ppl-@1",
        "loss-2.0",
        "ppl-2-3",
        "ppl-1.2.3",
        "ppl-.",
        "pass-0.3",
        "pass@-0.3",
        "pass@0-0.3",
        "pass@x-0.3",
        "pass@1",
    ],
)
def test_what_is_no_label_is_refused_with_an_example(label):
    with pytest.raises(UserError, match=r"is not a sweetspot label; .*ppl-2\.0"):
        parse(label)


@pytest.mark.parametrize("name", ["2", "2.0", "2.00", "ppl-2", "ppl-2.0"])
def test_a_person_may_write_a_threshold_in_several_ways(name):
    rules = [*thresholds(2, 1.6), Patience(evaluations=2, change=0.02)]
    assert named(name, rules, "sft") == rules[0]
    assert named("2@.02", rules, "sft") == rules[2]


def test_a_rule_that_a_run_does_not_have_names_those_that_it_has():
    with pytest.raises(
        UserError, match=r"unknown sweetspot of 'sft': 'ppl-3\.0'; choose from: ppl-2"
    ):
        named("3", thresholds(2), "sft")


def test_thresholds_fire_as_they_are_crossed_and_never_twice():
    rules = Rules(thresholds(2.0, 1.6, 1.4))
    found = watch(rules, [9.0, 2.1, 1.9, 2.2, 1.8, 1.5, 1.3, 1.2])
    assert found == [[], [], ["ppl-2.0"], [], [], ["ppl-1.6"], ["ppl-1.4"], []]
    assert rules.fired == {"ppl-2.0": 10, "ppl-1.6": 25, "ppl-1.4": 30}


def test_several_are_crossed_at_once_in_the_order_given():
    rules = Rules(thresholds(2.0, 1.6, 1.4))
    assert watch(rules, [9.0, 1.5, 1.4]) == [[], ["ppl-2.0", "ppl-1.6"], ["ppl-1.4"]]


def test_a_threshold_is_met_at_its_value():
    assert watch(Rules(thresholds(2.0)), [9.0, 2.0000001, 2.0]) == [[], [], ["ppl-2.0"]]


def test_what_the_base_meets_never_fires():
    rules = Rules(thresholds(2.0, 1.6))
    assert watch(rules, [1.9, 1.8, 1.5]) == [[], [], ["ppl-1.6"]]
    assert rules.met_by_base == {"ppl-2.0": 1.9}
    assert rules.outcome() == {
        "ppl-2.0": {"state": "met_by_base", "value": 1.9},
        "ppl-1.6": {"state": "reached", "step": 10},
    }
    assert rules.finished


def test_what_was_never_reached_has_the_best():
    rules = Rules(thresholds(2.0))
    watch(rules, [9.0, 2.3, 2.4])
    assert rules.outcome() == {"ppl-2.0": {"state": "unreached", "best": 2.3}}


@pytest.mark.parametrize(
    ("history", "finished"),
    [
        ([9.0], False),
        ([9.0, 1.9], False),
        ([9.0, 1.9, 1.5], True),
        ([1.9, 1.8], False),
        ([1.9, 1.5], True),
        ([1.5, 1.4, 1.3], False),
    ],
    ids=["start", "one-left", "all", "base-met-one", "base-met-one-and-all", "base-met-all"],
)
def test_it_is_finished_when_the_last_rule_has_fired(history, finished):
    rules = Rules(thresholds(2.0, 1.6))
    watch(rules, history)
    assert rules.finished == finished


def test_without_rules_it_is_never_finished():
    rules = Rules([])
    assert watch(rules, [9.0, 1.0]) == [[], []]
    assert not rules.finished
    assert rules.outcome() == {}


@pytest.mark.parametrize(
    ("evaluations", "history", "at"),
    [
        (1, [4.0, 3.0, 2.0], None),
        (1, [4.0, 3.75], None),
        (1, [4.0, 3.875], 1),
        (1, [4.0, 4.0], 1),
        (1, [4.0, 5.0], 1),
        (2, [4.0, 3.875], None),
        (2, [4.0, 3.875, 3.75], 2),
        (2, [4.0, 3.875, 3.0, 2.875, 2.75], 4),
        (2, [4.0, 3.0, 2.875, 2.5, 2.375, 2.25], 5),
        (2, [4.0, 3.0, 3.5, 3.5], 3),
        (3, [4.0, 3.0, 3.0, 3.0, 3.0], 4),
        (3, [4.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0], None),
    ],
)
def test_patience_wants_a_small_decrease_in_each_of_the_last_evaluations(evaluations, history, at):
    """The decrease is 0.25, and a fall by exactly as much is not less."""
    assert fired(Patience(evaluations=evaluations, change=0.25), history) == at


def test_patience_and_thresholds_go_together():
    rules = Rules([*thresholds(2.0), Patience(evaluations=1, change=0.25)])
    assert watch(rules, [4.0, 2.0, 1.9, 1.8]) == [[], ["ppl-2.0"], ["ppl-1@0.25"], []]
    assert rules.finished


def test_a_patience_that_never_fired_keeps_the_best():
    rules = Rules([Patience(evaluations=1, change=0.25)])
    watch(rules, [4.0, 3.0])
    assert rules.outcome() == {"ppl-1@0.25": {"state": "unreached", "best": 3.0}}


RULES = [*thresholds(5.0, 2.0, 1.6), Patience(evaluations=2, change=0.25)]
HISTORY = [4.0, 3.0, 1.9, 1.8, 1.7, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("stopped", range(1, len(HISTORY)))
def test_continued_from_a_checkpoint_it_is_as_if_never_stopped(stopped):
    straight = Rules(RULES)
    expected = watch(straight, HISTORY)
    before = Rules(RULES)
    found = watch(before, HISTORY[:stopped])
    after = Rules(RULES)
    after.load(json.loads(json.dumps(before.state())))
    for step in range(stopped, len(HISTORY)):
        found.append([rule.label for rule in after.observe(step * 5, HISTORY[step])])
    assert found == expected
    assert after.state() == straight.state()
    assert after.outcome() == straight.outcome()
    assert after.finished == straight.finished
