"""Where a run resumes, and what counts as a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tuning.runs import atomic, disk, manifest
from tuning.runs.errors import StageFailed
from tuning.runs.rundir import RunDirectory
from tuning.training.checkpoints import (
    RUN_STATE,
    resume_point,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    for step in range(1, 31):
        directory.log_metrics({"step": step})
    return directory


def save(run: RunDirectory, step: int, *, whole: bool = True) -> Path:
    folder = run.path / f"checkpoint-{step}"
    folder.mkdir()
    atomic.write_json(folder / RUN_STATE, {"seconds": float(step), "history": [step]})
    if whole:
        manifest.write_manifest(folder)
    return folder


def steps(run: RunDirectory) -> list[int]:
    return [line["step"] for line in run.metrics()]


def test_without_a_checkpoint_it_starts_anew(run):
    resume = resume_point(run)
    assert (resume.checkpoint, resume.step, resume.seconds, resume.state) == (None, 0, 0.0, {})
    assert steps(run) == []


def test_the_newest_whole_checkpoint_is_taken_and_what_came_later_removed(run):
    save(run, 10)
    newest = save(run, 20)
    save(run, 25, whole=False)
    (run.path / "checkpoint-sweetspot-2.0").mkdir()
    resume = resume_point(run)
    assert (resume.checkpoint, resume.step, resume.seconds) == (newest, 20, 20.0)
    assert resume.state["history"] == [20]
    assert steps(run) == list(range(1, 21))
    assert not (run.path / "checkpoint-25").exists()
    assert (run.path / "checkpoint-10").is_dir()
    assert (run.path / "checkpoint-sweetspot-2.0").is_dir()


def test_with_only_half_a_checkpoint_it_starts_anew(run):
    save(run, 10, whole=False)
    assert resume_point(run).checkpoint is None
    assert not (run.path / "checkpoint-10").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=str,
)
def test_a_full_disk_names_the_last_whole_checkpoint(run, error):
    save(run, 10)
    half = save(run, 20, whole=False)
    assert disk.is_full(error)
    words = "checkpoint-20 could not be written.*the last whole checkpoint is checkpoint-10"
    with pytest.raises(StageFailed, match=words), disk.reporting_full(run.path, half):
        raise error
    assert not half.exists()


def test_a_full_disk_before_the_first_checkpoint_says_so(run):
    half = save(run, 10, whole=False)
    with (
        pytest.raises(StageFailed, match="there is no checkpoint"),
        disk.reporting_full(run.path, half),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_behind_another_error_is_found():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise ValueError("writing failed")  # noqa: B904
    except ValueError as error:
        assert disk.is_full(error)


@pytest.mark.parametrize("error", [ValueError("shapes differ"), OSError(errno.ENOENT, "gone")])
def test_other_errors_stay_what_they_are(run, error):
    folder = save(run, 10, whole=False)
    with pytest.raises(type(error)), disk.reporting_full(run.path, folder):
        raise error
    assert folder.exists()
