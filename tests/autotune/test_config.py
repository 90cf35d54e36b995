"""What a search is told: its flags, and that it is complete in itself."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from tests.autotune.searches import search_of
from tests.small_site import use
from tuning import run_sweetspot_pipeline
from tuning.autotune.config import (
    AutotuneConfig,
    add_autotune_flags,
    autotune_given,
    autotune_words,
)
from tuning.flags import Parser, plain, restore
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit


def given(*words: str) -> AutotuneConfig | None:
    parser = Parser()
    add_autotune_flags(parser)
    args: argparse.Namespace = parser.parse_args(list(words))
    return autotune_given(args, args.autotune)


def test_flags_lead_to_a_search_and_back():
    assert given() is None
    assert given("--autotune") == AutotuneConfig()
    words = ["--autotune", "--strategy", "grid", "--time-budget", "90", "--memory_cap", "2G"]
    found = given(*words)
    assert found == AutotuneConfig(strategy="grid", time_budget=90.0, memory_cap="2G")
    assert given(*autotune_words(found)) == found


def test_settings_of_a_search_that_is_off_are_refused():
    with pytest.raises(UserError, match=r"--time_budget is for --autotune; add it\."):
        given("--time_budget", "90")


@pytest.mark.parametrize(
    ("text", "size"), [("900M", 900 << 20), ("24G", 24 << 30), ("1.5GiB", 3 << 29), ("7", 7)]
)
def test_a_cap_is_a_size(text, size):
    assert AutotuneConfig(memory_cap=text).cap_bytes == size


@pytest.mark.parametrize(
    "values",
    [
        {"memory_cap": "much"}, {"memory_cap": "0G"}, {"time_budget": 0.0}, {"profile_steps": 0},
        {"max_iterations": 0}, {"score_beta": -1.0}, {"mfu_target": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_values_without_a_meaning_are_refused(values):
    with pytest.raises(UserError, match=next(iter(values))):
        AutotuneConfig(**values)


def test_a_search_is_complete_in_itself():
    made = search_of(strategy="bayesian")
    again = restore(type(made), json.loads(json.dumps(plain(made))))
    assert (again, again.trained) == (made, made.trained)


def test_what_every_command_imports_is_light():
    heavy = {"torch", "skopt", "transformers"}
    code = f"import sys, tuning.autotune.config; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_plan_carries_the_search_to_every_stage_that_trains(monkeypatch, tmp_path, capsys):
    use(monkeypatch, tmp_path)
    words = [
        "--model", "tiny", "--dataset", "arith", "--task", "math", "--total_data", "1000",
        "--sft_data", "500", "--do_sft", "--do_dpo", "--do_inference", "--dry_run",
        "--launcher", "local", "--autotune", "--strategy", "grid",
    ]  # fmt: skip
    assert run_sweetspot_pipeline.main(words) == 0
    commands = [
        line for line in capsys.readouterr().out.splitlines() if "python tuning/run_" in line
    ]
    tuned = [line for line in commands if "--autotune --strategy grid" in line]
    trained = [line for line in commands if "--do_training" in line or "run_pretrain" in line]
    assert tuned == trained
    assert 0 < len(tuned) < len(commands)
    plan = run_sweetspot_pipeline.plan_of(run_sweetspot_pipeline.parser().parse_args(words))
    for stage in plan.stages:
        wanted = AutotuneConfig(strategy="grid") if stage.tunes else None
        assert (stage.tunes) == ("train" in stage.phases)
        assert (restore(AutotuneConfig, stage.autotune) if stage.autotune else None) == wanted
