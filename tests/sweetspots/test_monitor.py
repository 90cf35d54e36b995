"""Perplexity and pass@k of one run: what ends it, and what a checkpoint carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.config import PassAtKStoppingConfig, PerplexityConfig
from tuning.sweetspots.monitor import Measurement, Monitor, Monitors, Spending

pytestmark = pytest.mark.unit


def monitors(
    folder: Path, *, targets: tuple[float, ...] = (0.3, 0.5), early_stop: bool = True
) -> Monitors:
    return Monitors(
        PerplexityConfig(perplexity_thresholds=(2.0,), early_stop=early_stop),
        PassAtKStoppingConfig(pass_at_k_targets=targets, pass_at_k_every=20),
        Spending(train_size=1000, batch_size=10),
        RunDirectory(folder),
        "hash",
    )


def see(monitor: Monitor | None, *history: tuple[int, float]) -> list[str]:
    """The labels that fire."""
    assert monitor is not None
    fired = []
    for step, value in history:
        found = monitor.observe(step, Measurement(value=value, metrics={}))
        fired += [rule.label for rule in found]
    return fired


def test_a_run_ends_when_the_rules_of_both_are_met(tmp_path):
    both = monitors(tmp_path)
    assert see(both.perplexity, (0, 9.0), (10, 1.9)) == ["ppl-2.0"]
    assert not both.stops
    assert see(both.pass_at_k, (0, 0.1), (20, 0.3)) == ["pass@1-0.30"]
    assert not both.stops
    assert see(both.pass_at_k, (40, 0.9)) == ["pass@1-0.50"]
    assert both.stops
    assert both.result == {
        "perplexity": 1.9, "base_perplexity": 9.0, "pass@1": 0.9, "base_pass@1": 0.1,
        "sweetspots": {
            "ppl-2.0": {"state": "reached", "step": 10},
            "pass@1-0.30": {"state": "reached", "step": 20},
            "pass@1-0.50": {"state": "reached", "step": 40},
        },
    }  # fmt: skip


def test_what_the_base_meets_is_no_reason_to_go_on_or_to_end(tmp_path):
    both = monitors(tmp_path, targets=(0.3,))
    assert see(both.pass_at_k, (0, 0.4), (20, 0.5)) == [] and not both.stops
    see(both.perplexity, (0, 9.0), (10, 1.9))
    assert both.stops
    late = monitors(tmp_path, targets=(0.3,), early_stop=False)
    see(late.pass_at_k, (0, 0.0), (20, 0.5))
    see(late.perplexity, (0, 9.0), (10, 1.9))
    assert not late.stops


def test_each_is_measured_at_steps_of_its_own(tmp_path):
    both = monitors(tmp_path)
    assert both.pass_at_k is not None
    assert [step for step in range(46) if both.perplexity.due(step, 45)] == [0, 10, 20, 30, 40, 45]
    assert [step for step in range(46) if both.pass_at_k.due(step, 45)] == [0, 20, 40, 45]


def test_a_checkpoint_carries_both_and_what_is_owed(tmp_path):
    both, again = monitors(tmp_path), monitors(tmp_path)
    see(both.perplexity, (0, 9.0), (10, 1.9))
    see(both.pass_at_k, (0, 0.1), (20, 0.3))
    assert both.pass_at_k is not None and again.pass_at_k is not None
    both.pass_at_k.owed = True
    again.load(json.loads(json.dumps(both.state())))
    assert again.state() == both.state() and again.result == both.result
    assert again.pass_at_k.owed
    see(again.pass_at_k, (40, 0.9))
    assert not again.pass_at_k.owed and again.stops


def test_without_a_rule_it_is_not_there_and_checkpoints_are_as_ever(tmp_path):
    alone = monitors(tmp_path, targets=())
    assert alone.pass_at_k is None and alone.all == [alone.perplexity]
    alone.load({"history": [9.0, 1.9], "fired": {"ppl-2.0": 10}, "met_by_base": {}})
    assert alone.stops and set(alone.state()) == {"history", "fired", "met_by_base"}
    assert set(alone.result) == {"perplexity", "base_perplexity", "sweetspots"}
