"""A shorter start of processes that train: modules of libraries import what is never used here, and
Python looks for garbage among a million new objects that all stay.

Of the CPU time in which a training imports torch, transformers and TRL, a quarter goes to
scikit-learn (for a threshold of assisted generation), scipy (for a loss of object detection),
chardet (which requests takes where a smaller package would do), and lists of all installed packages
that several libraries make anew (benchmarks/startup.py). Of the rest, a seventh goes into looking
for garbage, and half of that is spared.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

HIDDEN = {
    "transformers": "scipy",  # where it asks, once, what is installed
    "transformers.generation.candidate_generator": "sklearn",
    "requests": "chardet",
}
"""Module -> the package that it imports if it is installed, and that is not there for it."""
LARGE = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "wandb")
"""Packages while whose modules are imported no garbage is collected."""


def install() -> None:
    """For what this process imports from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the modules of HIDDEN and of LARGE, and notices the first of transformers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As it would be found, to be executed without a package or without collections."""
        if fullname == "transformers":
            _list_packages_once()
        # What is imported by a module without collections is without them too.
        large = gc.isenabled() and fullname.partition(".")[0] in LARGE
        if fullname not in HIDDEN and not large:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            around = _Around(spec.loader, HIDDEN.get(fullname))
            spec.loader = around  # type: ignore[assignment]
        return spec


class _Around:
    """Executes a module without collections of garbage, and as if a package were not installed;
    all else as its own loader.
    """

    def __init__(self, loader: Any, package: str | None) -> None:
        self.loader, self.package = loader, package

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """With the package if the module cannot do without."""
        with _without_collections():
            try:
                with _hidden(self.package):
                    self.loader.exec_module(module)
            except ImportError:
                if self.package is None:
                    raise
                self.loader.exec_module(module)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _hidden(package: str | None) -> Iterator[None]:
    if package is None or package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python marks what is not there
    try:
        yield
    finally:
        del sys.modules[package]


def _list_packages_once() -> None:
    import importlib.metadata

    importlib.metadata.packages_distributions = cache(importlib.metadata.packages_distributions)
