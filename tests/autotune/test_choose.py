"""Choosing without trials that run: hits, neighbours, waiting, and what is left of a search."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.autotune.searches import pretraining, search_of
from tuning.autotune import cache, phase
from tuning.autotune.config import AutotuneConfig
from tuning.autotune.host import budget_of, device_of
from tuning.autotune.observation import Observation
from tuning.autotune.process import Limits
from tuning.autotune.rows import Sample
from tuning.autotune.subject import Subject
from tuning.autotune.trial import Request
from tuning.engine.config import ComputeConfig
from tuning.phases.options import Options
from tuning.phases.tune import tuned
from tuning.runs.rundir import RunDirectory

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TUNING_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials are answered from here: the larger the micro-batch, the faster; what was tried."""
    asked: list[int] = []

    def trial(request: Request, tries, folder: Path, limits: Limits, tick) -> Observation:
        tick()
        asked.append(tries.micro_batch)
        return Observation(
            candidate=tries, outcome="ok", step_seconds=(1.0 / tries.micro_batch,) * 3,
            peak_bytes=(500 + tries.micro_batch) << 20,
        )  # fmt: skip

    monkeypatch.setattr(phase, "run_trial", trial)
    return asked


def entry_of(config, length: int = 32) -> cache.Entry:
    sample = Sample(numbers=None, longest=length, mean=length)
    device = device_of(config.search, 1, Path("unused"))
    return cache.Entry(cache.about(Subject(config, sample, device)))


def test_a_hit_tries_nothing(tried):
    first = phase.choose(search_of(), lambda *_: None)
    assert (first.choice.source, first.choice.candidate["micro_batch"]) == ("search", 8)
    assert len(tried) == first.choice.trials
    again = phase.choose(search_of(), lambda *_: None)
    assert again.choice == replace(first.choice, source="cache")
    assert again.observations == first.observations
    assert len(tried) == first.choice.trials
    assert again.choice.applied(search_of().trained).compute.micro_batch_size == 8


def test_the_runs_own_settings_are_tried_first(tried):
    config = search_of(pretraining(micro_batch_size=2), max_iterations=1)
    found = phase.choose(config, lambda *_: None)
    assert (tried, found.choice.trials, found.choice.candidate["micro_batch"]) == ([2], 1, 2)
    odd = search_of(pretraining(micro_batch_size=3))
    sample = Sample(numbers=None, longest=32, mean=32)
    assert Subject(odd, sample, device_of(odd.search, 1, Path("unused"))).own is None


def test_a_search_that_ran_out_of_time_goes_on_with_more_of_it(tried):
    phase.choose(search_of(), lambda *_: None)
    entry = entry_of(search_of())
    kept = entry.choice()
    assert kept is not None
    entry.keep(replace(kept, ended="out of time", seconds=100.0))
    assert phase.choose(search_of(time_budget=150), lambda *_: None).choice.source == "cache"
    assert phase.choose(search_of(time_budget=250), lambda *_: None).choice.source == "search"


def test_a_choice_that_cannot_be_used_is_passed_over(tried):
    phase.choose(search_of(), lambda *_: None)
    entry = entry_of(search_of())
    (entry.path / "choice.json").write_text('{"candidate": {"no": 1}}')
    assert phase.choose(search_of(), lambda *_: None).choice.source == "search"


def test_waiting_for_another_search_ends(tried):
    config = search_of(time_budget=1.0)
    began = time.monotonic()
    with entry_of(config).lock.holding():
        found = phase.choose(config, lambda *_: None)
    assert found.choice.source == "default"
    assert "another process still searches" in found.choice.why
    assert (found.choice.applied(config.trained), tried) == (config.trained, [])
    assert 1 <= time.monotonic() - began < 10


def test_a_neighbour_is_a_hint_and_no_more(tried):
    phase.choose(search_of(), lambda *_: None)
    here, there = entry_of(search_of(), length=128), entry_of(search_of())
    ((about, seen),) = here.neighbours()
    assert (about, len(seen)) == (there.about, len(tried))
    subject = Subject(
        search_of(),
        Sample(numbers=None, longest=128, mean=128),
        device_of(AutotuneConfig(), 1, Path("unused")),
    )
    expected = phase.estimated(subject)
    (scaled, *_) = phase._scaled(seen, expected, phase._cost_of(about, subject), subject)
    assert scaled.step > seen[0].step, "four times as long"
    assert scaled.peak_bytes > seen[0].peak_bytes
    other = search_of(strategy="bayesian")
    assert phase.choose(other, lambda *_: None).choice.source == "cache", "same key"


def test_what_runs_out_of_memory_in_the_training_is_dropped_and_not_chosen_again(tried, home):
    run = search_of().trained
    directory = RunDirectory(home / "models" / "run")
    directory.path.mkdir(parents=True)

    def start(error: Exception) -> ComputeConfig:
        if phase.chosen_in(directory) is None:
            phase.record(directory, phase.choose(search_of(), lambda *_: None))
        with (
            pytest.raises(type(error)),
            tuned("pretrain", run, directory, Options()) as computed,
        ):
            raise error
        return computed.compute

    first = start(ValueError("no"))
    assert start(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == first
    assert phase.chosen_in(directory) is None
    assert start(ValueError("no")) != first
    assert phase.chosen_in(directory).candidate is not None


def test_a_trial_that_the_end_of_the_search_cuts_short_says_nothing(monkeypatch, home):
    def trial(request: Request, tries, folder: Path, limits: Limits, tick) -> Observation:
        assert limits.seconds < 20
        return Observation(candidate=tries, outcome="hang")

    monkeypatch.setattr(phase, "run_trial", trial)
    found = phase.choose(search_of(time_budget=20.0), lambda *_: None)
    assert (found.choice.source, found.observations) == ("default", ())
    assert "out of time" in found.choice.why


def test_nothing_of_a_scratch_folder_is_left(tried, home):
    left = phase._scratch().with_name(f"{phase.socket.gethostname()}-999999999")
    left.mkdir()
    phase.choose(search_of(), lambda *_: None)
    assert list((home / "cache/autotune/scratch").iterdir()) == []


def test_the_time_of_a_search_is_a_tenth_of_what_the_job_has_left():
    assert budget_of(AutotuneConfig(), {}) == 600
    end = str(int(time.time()) + 3600)
    assert budget_of(AutotuneConfig(), {"SLURM_JOB_END_TIME": end}) == pytest.approx(360, abs=2)
    assert budget_of(AutotuneConfig(time_budget=7.0), {"SLURM_JOB_END_TIME": end}) == 7
