"""What is measured of a model before and after it is trained, beside its answers: the likelihood
of answers that no training sees; likelihood.py has the figures that follow from it.

The likelihoods of a model on a pool are a run of their own, as its evaluation is: what one training
leaves is what the next one starts from, and is measured once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuning.data.config import DatasetConfig
from tuning.evaluation.config import EvaluationRunConfig
from tuning.runs.identity import digest
from tuning.settings import RunConfig, hashed_settings, require, setting
from tuning.weights.config import ModelLoadConfig

FOLDER = "likelihoods"
"""Under outputs/: a folder for each model and pool."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Before and after training: what is measured."""

    heldout_pairs: int = 200
    """Pairs from the end of the preference pool to measure the implicit reward on; fewer where the
    run trains on some of them."""

    def __post_init__(self) -> None:
        require(self, "heldout_pairs", self.heldout_pairs >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class BeforeAfterConfig:
    """What to measure before and after one training; complete in itself. Measuring changes no
    result, so none of it is hashed into the run.
    """

    validation: DatasetConfig | None = None
    """The dataset whose validation pool perplexity is measured on; None: it has none."""
    validation_size: int
    pairs: DatasetConfig | None = None
    """The dataset of held-out pairs; None for SFT, and where the preference pool has no pairs."""
    held_out: HeldOutConfig
    before: EvaluationRunConfig | None = None
    """The evaluation of the model that the training starts from; None: answers are not sampled."""

    @property
    def hash(self) -> str:
        """The hash of what is measured, by which before_after.json is told."""
        return digest(hashed_settings(self))


@dataclass(frozen=True, kw_only=True)
class LikelihoodRunConfig(RunConfig):
    """The likelihoods of the answers in a part of a pool under one model."""

    kind = "likelihoods"
    base: ModelLoadConfig = setting(hashed=False)
    artifact: str = setting(hashed=False)
    """The name of the model: of a run, a sweetspot or a base."""
    artifact_hash: str
    data: DatasetConfig
    pool: str
    """validation or preference."""
    first: int
    """The first row, counted from 0."""
    size: int
    """Rows from there on."""
    max_seq_length: int
    """Longest sequence in tokens; longer answers are cut."""

    @property
    def run_name(self) -> str:
        """`{model}_{pool}`; `-{hash8}` is added where another part of the pool has that name."""
        return f"{self.artifact}_{self.pool}"

    @property
    def evaluates(self) -> dict[str, Any]:
        """What is measured, as config.json names a parent."""
        return {"run_name": self.artifact, "hash": self.artifact_hash}


def held_out_part(pool_size: int, train_size: int, wanted: int) -> tuple[int, int]:
    """(first row, number of rows) of the part of a preference pool to measure on: its last `wanted`
    rows, without the first `train_size`, which are trained on; none may be left.
    """
    first = max(pool_size - wanted, train_size)
    return first, max(pool_size - first, 0)
