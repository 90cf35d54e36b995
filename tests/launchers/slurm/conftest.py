"""A home in memory, and settings, for plans on a SLURM in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.slurm.small import Small
from tuning.launchers.slurm import snapshot
from tuning.launchers.slurm.resources import Cluster


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job runs any code here, so none is copied."""
    monkeypatch.setattr(snapshot, "take", lambda: Path("/code"))


@pytest.fixture
def settings(tmp_path: Path, no_code: None) -> Cluster:
    """A cluster without settings, and one kind of stage of which two run at a time."""
    path = tmp_path / "cluster.yaml"
    path.write_text("stages: {pft: {throttle: 2}}\n")
    return Cluster({"processes": 2, "nodes": 2}, environ={}, path=path)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: every state is written as it is on a cluster."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None, prefix="tuning-test-"))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def small(memory: Path, settings: Cluster, monkeypatch: pytest.MonkeyPatch):
    """Makes a `Small` in a home of its own."""
    home = memory / "home"
    home.mkdir()
    monkeypatch.setenv("TUNING_HOME", str(home))
    return lambda *stages, **options: Small(home, settings, *stages, **options)
