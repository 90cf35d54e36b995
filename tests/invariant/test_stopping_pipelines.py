"""SFT that stops at pass@k and perplexity, forks from what it left, and what is drawn of that: one
experiment at test size, by the command and by the notebooks that read it.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import COLLECTIONS, check, copy_home, run_entry
from tuning.config import PACKAGE
from tuning.runs.rundir import RunDirectory

EXPERIMENT = (
    "--model", "tiny", "--dataset", "arith", "--task", "math", "--total_data", "64",
    "--sft_data", "48", "--perplexity_thresholds", "5.0", "--pass_at_k_targets", "1.0",
    "--pass_at_k_patience", "1:1.0", "--pass_at_k_every", "3", "--pass_at_k_prompts", "64",
    "--launcher", "local",
)  # fmt: skip
"""The plateau is that after three steps; the target is never reached."""
PLATEAU = "pass@1-1@1.00"


@pytest.fixture(scope="module")
def finished(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = copy_home(trained_home, tmp_path_factory.mktemp("stopping") / "home")
    check(run_entry(home, "training/passk_pipeline.py", *EXPERIMENT))
    return home


def test_each_checkpoint_is_forked_with_what_is_left(finished: Path) -> None:
    (spot,) = finished.glob(f"models/*/checkpoint-sweetspot-{PLATEAU}")
    told = json.loads((spot / "sweetspot_metadata.json").read_text())
    assert (told["global_step"], told["sft_data_used"]) == (3, 48)
    (fork,) = finished.glob(f"models/tiny_sweetspot-{PLATEAU}_dpo-arith-16*")
    assert RunDirectory(fork).result["data_used"] == 16
    (path,) = finished.glob("outputs/reports/*/results.csv")
    with path.open() as file:
        rows = [(row["stage"], row["threshold"], row["note"]) for row in csv.DictReader(file)]
    assert [row[:2] for row in rows] == [
        ("base", ""), ("sft", ""),
        ("sweetspot", "5.0"), ("sweetspot", "pass@1-1.00"), ("sweetspot", PLATEAU),
        ("fork", "5.0"), ("fork", "pass@1-1.00"), ("fork", PLATEAU),
    ]  # fmt: skip
    notes = {threshold: note for stage, threshold, note in rows if stage == "fork"}
    assert notes["pass@1-1.00"].startswith("pass@1 never reached 1.00 (best 0.")
    assert not notes[PLATEAU] and not notes["5.0"]


def test_the_report_names_and_draws_both_measures(finished: Path) -> None:
    (path,) = finished.glob("outputs/reports/*/report.html")
    html = path.read_text()
    assert "Pass@1 over SFT examples" in html and "Perplexity over SFT examples" in html
    for words in ("SFT to ppl 5.0", "SFT to pass@1 1.00", "SFT to pass@1 patience 1@1.00"):
        assert words in html
    assert "DPO from pass@1 patience 1@1.00" in html


@pytest.mark.parametrize("name", ["passk_pipeline", "ppl_pipeline"])
def test_a_notebook_reads_and_draws_it(
    finished: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = PACKAGE / "training" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "kept without outputs"
    monkeypatch.setenv("TUNING_HOME", str(finished))
    monkeypatch.setenv("TUNING_COLLECTIONS", str(COLLECTIONS))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    done = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    shown = json.dumps([cell.get("outputs") for cell in done.cells])
    assert shown.count("<svg") >= 2
    assert {"passk_pipeline": PLATEAU, "ppl_pipeline": "ppl-5.0"}[name] in shown
    over = {"passk_pipeline": "Pass@1 over SFT", "ppl_pipeline": "Perplexity over SFT"}
    assert over[name] in shown
