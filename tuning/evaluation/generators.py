"""What can sample answers, by the name that `--backend` takes. To add one, write it in a module of
tuning/inference/ (what it must do: generator.py there) and name it in GENERATORS.

Here, and not there, since the settings of an evaluation are checked without anything heavy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An inference engine."""

    name: str
    opens: str
    """`module:function`, imported only when answers are sampled: a context manager that takes an
    Artifact and gives a Generator.
    """


GENERATORS = {
    entry.name: entry for entry in (Backend(name="hf", opens="tuning.inference.hf_engine:opened"),)
}
