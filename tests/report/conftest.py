"""A home for made-up experiments."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tuning.runs import provenance


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TUNING_HOME, empty. Where the runs are said to come from is looked up once."""
    monkeypatch.setenv("TUNING_HOME", str(tmp_path))
    monkeypatch.setattr(provenance, "collect", functools.cache(provenance.collect))
    return tmp_path
