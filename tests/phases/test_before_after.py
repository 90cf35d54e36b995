"""Measuring around a training, where no model is needed: what others measure, what is held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.run_configs import pt, sft
from tests.small_site import use
from tuning.data import train_dataset
from tuning.evaluation.before_after import HeldOutConfig
from tuning.phases.before_after import BeforeAfter, Model, before_after_config, summary
from tuning.phases.options import Options
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.lock import Lock
from tuning.runs.measured import FILE, PHASE, told_by
from tuning.runs.rundir import RunDirectory, claim

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return use(monkeypatch, tmp_path)


def measuring(run, train_size: int, pairs: int = 200) -> BeforeAfter:
    config = before_after_config(run, HeldOutConfig(heldout_pairs=pairs), None, 8)
    return BeforeAfter(run, train_size, Options(before_after=config))


def test_what_another_process_measures_is_left_to_it(home: Path, said: list[str]) -> None:
    """No model is loaded, and the training does not wait."""
    with Lock(home / "outputs/likelihoods/tiny_validation").holding():
        measuring(sft(), 500).before(RunDirectory(home / "models/sft"))
    assert any("tiny_validation is in use by process" in line for line in said)
    assert not (home / "models").exists()


def test_a_run_that_is_not_to_be_measured_is_left_alone(home: Path) -> None:
    measures = BeforeAfter(sft(), 500, Options())
    measures.before(RunDirectory(home / "models/sft"))
    measures.after(RunDirectory(home / "models/sft"), sft().identity())
    assert not list(home.iterdir())


@pytest.mark.parametrize(("trained", "part"), [(300, (9_800, 200)), (9_900, (9_900, 100))])
def test_pairs_are_held_out_from_the_end_of_the_pool(trained: int, part: tuple[int, int]) -> None:
    run = pt()
    measures = measuring(run, trained)
    config = measures.options.before_after
    assert config is not None
    validation, pairs = measures._parts(Model.before(run), config)
    assert (validation.pool, validation.first, validation.size) == ("validation", 0, 8)
    assert (pairs.pool, (pairs.first, pairs.size)) == ("preference", part)
    assert pairs.first + pairs.size == train_dataset.pool_size(run.dataset.entry, "preference")
    everything = measuring(run, 10_000)
    assert [p.pool for p in everything._parts(Model.before(run), config)] == ["validation"]


def test_the_summary_names_what_was_measured() -> None:
    side = {"score": None, "perplexity": {"estimate": 2.0}, "reward": None}
    found = {"before": side, "after": side | {"perplexity": {"estimate": 1.5}}}
    assert summary(found) == "perplexity 2.000 -> 1.500"


def test_a_measurement_is_left_if_it_is_the_one_asked_for(home: Path) -> None:
    """No model is loaded: one that is there already is enough; of the first prompts it is not."""
    run = sft()
    measures = measuring(run, 500)
    config = measures.options.before_after
    assert config is not None
    claimed = claim(home / "models", run.identity())
    with claimed as directory, directory.phase("train"), directory.phase(PHASE):
        atomic.write_json(directory.path / FILE, told_by(config.hash, 50))
    measures.options = replace(measures.options, first_prompts=50)
    measures.after(directory, run.identity())
    assert directory.done(PHASE)
    measures.options = replace(measures.options, first_prompts=None)
    with pytest.raises(UserError, match="tiny"):  # there is no model to measure
        measures.after(directory, run.identity())
