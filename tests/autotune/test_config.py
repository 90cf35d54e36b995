"""What a search is told: its flags, and that it is complete in itself."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from tests.autotune.small import search_of
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
