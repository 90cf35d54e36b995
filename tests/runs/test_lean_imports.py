"""Imports without what is not used: a module that looks for a package does not find it, another
one does, and a module that needs it gets it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from tuning.runs import lean_imports

pytestmark = pytest.mark.unit

NAMED = tuple(lean_imports.HIDDEN)
LOOKS = "try:\n    import costly\nexcept ImportError:\n    costly = None\n"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"costly": "", "looks": LOOKS, "other": LOOKS, "needs": "import costly"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(lean_imports, "HIDDEN", {"looks": "costly", "needs": "costly"})
    lean_imports.install()
    lean_imports.install()


def test_only_what_is_named_does_without() -> None:
    assert importlib.import_module("looks").costly is None
    assert "costly" not in sys.modules
    assert importlib.import_module("other").costly is not None
    assert importlib.import_module("needs").costly is sys.modules["costly"]


def test_a_package_that_is_there_stays() -> None:
    costly = importlib.import_module("costly")
    assert importlib.import_module("looks").costly is costly is sys.modules["costly"]


def test_it_is_installed_once() -> None:
    assert [type(finder).__name__ for finder in sys.meta_path].count("_Finder") == 1


def test_the_modules_are_still_those_of_the_libraries() -> None:
    """A name that a new version moved would make nothing faster, and nobody would see it."""
    for name in NAMED:
        assert importlib.util.find_spec(name) is not None
