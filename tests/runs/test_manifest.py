"""Which checkpoints count as whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning.runs import manifest

pytestmark = pytest.mark.unit


def checkpoint(run: Path, step: int | str, *, whole: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_text("123")
    (folder / "deep" / "more").write_text("4567")
    if whole:
        manifest.write_manifest(folder)
    return folder


def steps(run: Path) -> list[int]:
    return [step for step, _ in manifest.checkpoints(run)]


def test_a_sealed_checkpoint_is_whole(tmp_path):
    assert manifest.is_whole(checkpoint(tmp_path, 1))
    assert not manifest.is_whole(checkpoint(tmp_path, 2, whole=False))
    assert not manifest.is_whole(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights").write_text("12"),
        lambda folder: (folder / "weights").write_text("1234"),
        lambda folder: (folder / "deep" / "more").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"files": {"wei'),
        lambda folder: (folder / "manifest.json").write_text(""),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text('{"files": 3}'),
    ],
)
def test_a_damaged_one_is_not_and_an_older_one_wins(tmp_path, damage):
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 10)
    assert manifest.newest_whole(tmp_path) == newest
    damage(newest)
    assert not manifest.is_whole(newest)
    assert manifest.newest_whole(tmp_path) == tmp_path / "checkpoint-5"


def test_a_file_that_came_later_does_no_harm(tmp_path):
    folder = checkpoint(tmp_path, 1)
    (folder / "sealed-before").touch()
    assert manifest.is_whole(folder)
    manifest.write_manifest(folder)
    assert manifest.is_whole(folder)


def test_checkpoints_are_ordered_by_number_and_others_left_alone(tmp_path):
    for step in (100, 20, 3, "sweetspot-2.0", "3x"):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-7").touch()
    assert steps(tmp_path) == [3, 20, 100]
    assert steps(tmp_path / "nowhere") == []
    assert manifest.newest_whole(tmp_path / "nowhere") is None
    manifest.drop(tmp_path)
    assert steps(tmp_path) == []
    assert (tmp_path / "checkpoint-sweetspot-2.0").is_dir()


def test_prune_keeps_the_newest_whole_ones(tmp_path):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, whole=False)
    checkpoint(tmp_path, 3)
    manifest.prune(tmp_path)
    assert steps(tmp_path) == [1, 2, 3]
    checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 5, whole=False)
    manifest.prune(tmp_path)
    assert steps(tmp_path) == [3, 4, 5]
    with pytest.raises(ValueError, match="keep is 0"):
        manifest.prune(tmp_path, keep=0)
