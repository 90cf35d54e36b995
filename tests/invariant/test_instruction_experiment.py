"""The task `instruction` from end to end on the embedded model: base, SFT, a sweetspot, its forks
by every method, and scores by the checkers of IFEval.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.conftest import check, copy_home, run_entry

FLAGS = (
    "--model", "tiny", "--dataset", "ifsynth", "--task", "ifeval", "--launcher", "local",
    "--experiment", "instructions", "--total_data", "112", "--sft_data", "96", "--no_references",
    "--perplexity_thresholds", "250", "--pft_method", "dpo", "kto", "grpo",
    "--do_sft", "--do_dpo", "--do_inference", "--do_evaluation",
)  # fmt: skip


def test_every_method_on_instructions(trained_home: Path, tmp_path: Path) -> None:
    home = copy_home(trained_home, tmp_path / "home")
    check(run_entry(home, "run_sweetspot_pipeline.py", *FLAGS))
    with (home / "outputs/reports/instructions/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["base", "sft", "sweetspot", "fork", "fork", "fork"]
    assert {row["pft_method"] for row in rows[3:]} == {"dpo", "kto", "grpo"}
    measures = ("prompt_loose", "instruction_strict", "instruction_loose")
    for row in rows:
        assert row["note"] == ""
        assert 0 <= float(row["pass_at_1"]) <= float(row["prompt_loose"]) <= 1
        assert float(row["instruction_strict"]) <= float(row["instruction_loose"]) <= 1
    scored = list((home / "outputs/instruction").glob("*/scores.json"))
    assert len(scored) == len(rows)
    for path in scored:
        parts = json.loads(path.read_text())["parts"]
        assert tuple(parts) == measures
        assert all(part["low"] <= part["estimate"] <= part["high"] for part in parts.values())
