"""A generator beside a training, for a model that no generator can borrow: what the training has
so far is written to a folder, and an engine of its own answers with that.

vLLM's engine can be kept between measurements: it takes the next adapter, or reads the next whole
weights in place of those that it has. One that is ended leaves its memory to the training.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tuning.evaluation.config import PassAtKConfig
from tuning.inference.generator import Generator, opened
from tuning.inference.probe import kept_random
from tuning.weights.artifact import Artifact
from tuning.weights.merged import merge

BESIDE = ".pass_at_k.tmp"
"""The folder of a run directory where weights are written; what a kill leaves is removed when the
run is claimed again.
"""


class Beside:
    """Generators on one model at several times of its training."""

    def __init__(
        self, base: Artifact, sampling: PassAtKConfig, folder: Path, *, keep: bool
    ) -> None:
        """`base`: what is trained, as it was before; `folder`: where weights are written, which is
        emptied; `keep`: whether an engine that can be kept is.
        """
        self.base = base
        self.sampling = sampling
        self.folder = folder
        self.keep = keep and sampling.backend == "vllm"
        self._kept: contextlib.ExitStack | None = None
        self._generator: Generator | None = None

    @contextlib.contextmanager
    def generator(self, write: Callable[[Path], None]) -> Iterator[Generator]:
        """A generator on the weights that `write` writes to a folder: an adapter, or a whole model.
        Random numbers stay as they were.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        try:
            with kept_random():
                write(self.folder / "model")
                artifact = self._written()
                with self._open(artifact) as generator:
                    yield generator
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """End an engine that was kept."""
        if self._kept is not None:
            self._kept.close()
        self._kept = self._generator = None

    def _written(self) -> Artifact:
        """The artifact that was written; an adapter is merged where the engine takes no such, or no
        base in 4 bits: an engine that is kept gets the same form every time.
        """
        model = self.folder / "model"
        if not (model / "adapter_config.json").exists():
            return replace(self.base, base=str(model))
        artifact = replace(self.base, adapter=model)
        if self.sampling.backend != "vllm":
            return artifact
        from tuning.inference.vllm_engine import is_merged

        if not (artifact.load_in_4bit or is_merged(artifact, self.sampling.merge_adapter)):
            return artifact
        whole = self.folder / "merged"
        merge(artifact, whole)
        return replace(artifact, base=str(whole), adapter=None, load_in_4bit=False)

    @contextlib.contextmanager
    def _open(self, artifact: Artifact) -> Iterator[Generator]:
        if not self.keep:
            with opened(self.sampling.backend, artifact) as generator:
                yield generator
            return
        if self._generator is None:
            self._kept = contextlib.ExitStack()
            self._generator = self._kept.enter_context(opened(self.sampling.backend, artifact))
        else:
            from tuning.inference.vllm_engine import VLLMGenerator

            assert isinstance(self._generator, VLLMGenerator)
            self._generator.serve(artifact)
        yield self._generator
