"""How a model is sampled and scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuning import config as site
from tuning.flags import build, override, plain
from tuning.runs.errors import UserError
from tuning.runs.identity import digest, settings
from tuning.runs.rundir import SHORT, Identity

_INTERNAL: dict[str, Any] = {"flag": False}


@dataclass(frozen=True, kw_only=True)
class PassAtKConfig:
    """Sampling for pass@k: n answers a prompt, of which k are looked at."""

    prompts: int = 200
    """Test prompts; the first of the test pool."""
    n_samples: int = 8
    """Answers sampled a prompt."""
    k_values: tuple[int, ...] = (1, 8)
    """The k of pass@k; each at most n_samples."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    temperature: float = 0.7
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus sampling: smallest set of tokens with this probability."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0: from all."""
    batch_size: int = 16
    """Prompts sampled together; part of what makes a sample reproducible."""
    sampling_seed: int = 0
    """Of the sampling; each batch is seeded by it, the run and its own number."""

    def __post_init__(self) -> None:
        for name in ("prompts", "n_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; sampling needs one above zero.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more.")
        wrong = [k for k in self.k_values if not 1 <= k <= self.n_samples]
        if wrong or not self.k_values or len(set(self.k_values)) < len(self.k_values):
            raise UserError(
                f"k_values {list(self.k_values)} must be different numbers between 1 "
                f"and n_samples {self.n_samples}."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationRunConfig:
    """Inference and evaluation of one model: a run of its own under outputs/{task}."""

    kind = "evaluation"
    model: str = field(metadata={"hashed": False})
    """The model that is evaluated, by the key of its base."""
    artifact: str = field(metadata=_INTERNAL | {"hashed": False})
    """The run name of what is evaluated."""
    artifact_hash: str = field(metadata=_INTERNAL)
    """Its hash; of a sweetspot with its label behind."""
    dataset: str = field(metadata=_INTERNAL)
    version: str = field(metadata=_INTERNAL)
    task: str = field(metadata=_INTERNAL)
    sampling: PassAtKConfig = PassAtKConfig()

    @property
    def hash(self) -> str:
        """Over the artifact, the data and the sampling."""
        return digest({"kind": self.kind, "settings": settings(self)})

    @property
    def suffix(self) -> str:
        """`_eval-{hash8}` unless the sampling is the model's default."""
        same = settings(self.sampling) == settings(sampling_config(self.model))
        return "" if same else f"_eval-{self.hash[:SHORT]}"

    @property
    def run_name(self) -> str:
        """The artifact's name and the suffix."""
        return self.artifact + self.suffix

    def identity(self) -> Identity:
        """The identity under which the output directory is claimed."""
        return Identity(
            run_name=self.run_name,
            kind=self.kind,
            hash=self.hash,
            hashed=settings(self),
            settings=plain(self),
            parent={"run_name": self.artifact, "hash": self.artifact_hash},
        )


def sampling_config(model: str, values: Mapping[str, Any] | None = None) -> PassAtKConfig:
    """How a model is sampled: defaults, then collections.yaml, then `values`."""
    entry = site.collections().model(model)
    where = f"collections.yaml, models: {entry.name}: settings: evaluation"
    chosen = override((PassAtKConfig,), entry.settings.get("evaluation", {}), where)
    return build(PassAtKConfig, chosen | dict(values or {}))


def evaluation_config(
    *, model: str, artifact: str, artifact_hash: str, dataset: str, task: str,
    sampling: PassAtKConfig,
) -> EvaluationRunConfig:  # fmt: skip
    """The evaluation of an artifact on the test pool of a dataset."""
    from tuning.data.train_dataset import version

    return EvaluationRunConfig(
        model=model,
        artifact=artifact,
        artifact_hash=artifact_hash,
        dataset=dataset,
        version=version(dataset, "test"),
        task=site.collections().task(task),
        sampling=sampling,
    )
