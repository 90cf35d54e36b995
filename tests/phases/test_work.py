"""A planned stage is what collections.yaml said when it was planned, wherever it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.small_site import COLLECTIONS, use
from tuning import config as site
from tuning.evaluation.before_after import HeldOutConfig
from tuning.experiments.choices import Choices
from tuning.experiments.stages import StageMaker
from tuning.phases.work import planned
from tuning.plan import Stage, write_stage
from tuning.runs.errors import StageFailed, UserError

pytestmark = pytest.mark.unit

ROW = {"completion": "2", "chosen": "2", "rejected": "3", "answer": "2"}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A site with files of its own and a local model, all named relative to collections.yaml."""
    for pool in ("sft", "pt", "va", "te"):
        rows = [ROW | {"prompt": f"{pool} {number}"} for number in range(60)]
        (tmp_path / f"{pool}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return use(monkeypatch, tmp_path, COLLECTIONS + "  local: {path: base}\n")


def stage(model: str = "local") -> Stage:
    choices = Choices(
        experiment="e", dataset="mine", task="math", do_inference=True, do_evaluation=True
    )
    maker = StageMaker(model=model, choices=choices)
    return maker.sft_stage("sft", maker.sft_run(40), None, train=True)


def test_the_configs_are_those_of_the_plan_whatever_collections_say_by_then(home, tmp_path):
    made = stage()
    write_stage(tmp_path / "stage.json", made)
    site.collections_path().unlink()
    site._load.cache_clear()
    work = planned(["--stage", str(tmp_path / "stage.json"), "--no_wait"])
    assert work is not None and work.evaluation is not None
    assert (work.run.hash, work.name) == (made.hash, made.name)
    assert work.evaluation.hash == made.evaluation_hash
    assert work.run.model.path == str(tmp_path / "base")
    assert work.run.dataset.files["sft"] == str(tmp_path / "sft.jsonl")
    assert work.evaluation.data.files["test"] == str(tmp_path / "te.jsonl")
    assert len(work.run.dataset.rows("sft")) == 60
    assert not work.options.wait


def test_other_collections_make_another_stage(home, monkeypatch, tmp_path):
    first = stage("tiny")
    use(monkeypatch, tmp_path, COLLECTIONS.replace("5.0e-3", "4.0e-3"))
    site._load.cache_clear()
    assert stage("tiny").key != first.key


def test_a_config_that_is_no_longer_what_was_planned_is_refused(home, tmp_path):
    made = stage()
    assert made.run is not None
    made.run["training"]["learning_rate"] = 1e-7
    write_stage(tmp_path / "stage.json", made)
    with pytest.raises(StageFailed, match="was planned by another version of the code"):
        planned(["--stage", str(tmp_path / "stage.json")])


def test_any_other_file_is_refused(tmp_path):
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(UserError, match="is not a stage file"):
        planned(["--stage", str(tmp_path / "stage.json")])


def test_flags_of_its_own_are_no_planned_work():
    assert planned(["--model", "tiny"]) is None


def test_a_stage_measures_only_where_that_is_one_of_its_phases(home, tmp_path):
    choices = Choices(experiment="e", dataset="mine", task="math", held_out=HeldOutConfig())
    maker = StageMaker(model="local", choices=choices)
    made = maker.sft_stage("sft", maker.sft_run(40), None, train=True)
    path = tmp_path / "stage.json"
    for phases in (("train", "measure"), ("train",)):
        write_stage(path, replace(made, phases=phases))
        work = planned(["--stage", str(path)])
        assert work is not None
        config = work.options.before_after
        assert (config is not None) == ("measure" in phases)
        assert config is None or config.hash == made.measure_hash
