"""Imports without what is not used: a module that looks for a package does not find it, another
one does, and a module that needs it gets it. No garbage is collected while a large package is
imported, and again afterwards, however that ends."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuning.runs import lean_imports

pytestmark = pytest.mark.unit

NAMED = (*lean_imports.HIDDEN, *lean_imports.LARGE)
COLLECTS = "import gc\ncollects = gc.isenabled()\n"
LOOKS = "try:\n    import costly\nexcept ImportError:\n    costly = None\n"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"costly": "", "looks": LOOKS, "other": LOOKS, "needs": "import costly"}
    texts |= {
        "small": COLLECTS,
        "large": COLLECTS + "import small, within\nafter = gc.isenabled()\n",
        "within": COLLECTS,
        "broken": COLLECTS + "raise ImportError('broken')\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(lean_imports, "HIDDEN", {"looks": "costly", "needs": "costly"})
    monkeypatch.setattr(lean_imports, "LARGE", ("large", "within", "broken"))
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


@pytest.fixture
def collections() -> Iterator[None]:
    """Collections as they were, whatever a test did to them."""
    enabled = gc.isenabled()
    gc.enable()
    yield
    if not enabled:
        gc.disable()


def test_a_large_package_is_imported_without_collections(collections: None) -> None:
    large = importlib.import_module("large")
    assert not large.collects and not large.small.collects and not large.within.collects
    assert not large.after, "within a large package the outermost one decides"
    assert gc.isenabled()
    del sys.modules["small"]
    assert importlib.import_module("small").collects


def test_collections_go_on_after_an_import_that_fails(collections: None) -> None:
    with pytest.raises(ImportError, match="broken"):
        importlib.import_module("broken")
    assert gc.isenabled()


def test_collections_that_were_off_stay_off(collections: None) -> None:
    gc.disable()
    assert not importlib.import_module("large").collects
    assert not gc.isenabled()


def test_it_is_installed_once() -> None:
    assert [type(finder).__name__ for finder in sys.meta_path].count("_Finder") == 1


def test_the_modules_are_still_those_of_the_libraries() -> None:
    """A name that a new version moved would make nothing faster, and nobody would see it."""
    for name in NAMED:
        assert importlib.util.find_spec(name) is not None
