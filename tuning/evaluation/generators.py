"""What can sample answers, by the name that `--backend` takes. To add one, write it in a module of
tuning/inference/ (what it must do: generator.py there) and name it in GENERATORS.

Here, and not there, since the settings of an evaluation are checked without anything heavy.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tuning.runs import provenance

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An inference engine."""

    name: str
    opens: str
    """`module:function`, imported only when answers are sampled: a context manager that takes an
    Artifact and gives a Generator.
    """


GENERATORS = {
    entry.name: entry
    for entry in (
        Backend(name="hf", opens="tuning.inference.hf_engine:opened"),
        Backend(name="vllm", opens="tuning.inference.vllm_engine:opened"),
    )
}


def automatic(cuda: bool | None = None) -> str:
    """The engine that `auto` means: vllm on CUDA where it is installed, hf elsewhere.

    `cuda`: whether answers will be sampled on CUDA; None: as this machine has it.
    """
    if importlib.util.find_spec("vllm") is None:
        return "hf"
    return "vllm" if (bool(provenance.gpus()) if cuda is None else cuda) else "hf"
