"""How a model is sampled and scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuning import config as site
from tuning.data.config import DatasetConfig, dataset_config
from tuning.evaluation.generators import AUTO, GENERATORS, automatic
from tuning.flags import build
from tuning.runs.errors import UserError, choose
from tuning.runs.rundir import SHORT
from tuning.schema import override
from tuning.settings import RunConfig, hashed_settings, require, setting
from tuning.sweetspots.store import sweetspot_hash, sweetspot_name
from tuning.weights.config import ModelLoadConfig


def _in_batches(sampling: Any, _run: Any) -> bool:
    """Whether what is drawn depends on which prompts are answered together."""
    return bool(sampling.backend == "hf")


def _with_vllm(sampling: Any, _run: Any) -> bool:
    return bool(sampling.backend == "vllm")


def _drawn(sampling: Any, _run: Any) -> bool:
    """Whether tokens are drawn at random."""
    return bool(sampling.decoding == "sample")


@dataclass(frozen=True, kw_only=True)
class PassAtKConfig:
    """Sampling for pass@k: n_samples answers per prompt."""

    prompts: int = 200
    """Number of test prompts, from the start of the test pool."""
    n_samples: int = 8
    """Answers per prompt."""
    k_values: tuple[int, ...] = (1, 8)
    """The k of pass@k; each at most n_samples."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    decoding: Literal["sample", "beam"] = setting("sample", before="sample")
    """sample: answers are drawn; beam: the n_samples best of a beam search of that width, and
    pass@k asks whether one of the k best is right.
    """
    temperature: float = setting(0.7, hashed=_drawn)
    """Sampling temperature; 0 takes the most likely token, and gives one answer per prompt."""
    top_p: float = setting(1.0, hashed=_drawn)
    """Nucleus sampling: smallest set of tokens with this probability."""
    top_k: int = setting(0, hashed=_drawn)
    """Sample from the k most likely tokens; 0: from all."""
    batch_size: int = setting(16, hashed=_in_batches)
    """Prompts per batch of hf, and of a beam search; with hf, changing it changes the samples."""
    sampling_seed: int = setting(0, hashed=_drawn)
    """Sampling seed; that of each batch, or with vllm of each prompt, is derived from it, the run
    and its place.
    """
    backend: str = setting(AUTO, before="hf")
    """The inference engine: hf is transformers; auto takes vllm on CUDA where it is installed, and
    else hf.
    """
    tensor_parallel_size: int = setting(1, hashed=False)
    """vllm: GPUs that a model is divided among."""
    gpu_memory_utilization: float | None = setting(None, hashed=False)
    """vllm: share of a GPU's memory that it may use (default: 0.85); on a CPU, of the machine's
    (default: 2 GiB beside the weights).
    """
    enable_prefix_caching: bool = setting(True, hashed=False)
    """vllm: compute what prompts share at their beginning once."""
    merge_adapter: bool | None = setting(None, hashed=_with_vllm, before=None)
    """vllm: merge a LoRA adapter into its base first, and keep that (default: only where vLLM takes
    no such adapter, and on a CPU, which is slow at adapters).
    """
    enforce_eager: bool = setting(False, hashed=False)
    """vllm: neither compile nor record CUDA graphs; starts sooner and samples slower."""
    few_shot: int = setting(0, before=0)
    """Worked examples before each prompt when a base model is evaluated, the first of the SFT pool;
    trained models get none.
    """

    def __post_init__(self) -> None:
        choose("backend", self.backend, (AUTO, *GENERATORS))
        if self.backend == AUTO:
            object.__setattr__(self, "backend", automatic())
        for name in (
            "prompts",
            "n_samples",
            "max_new_tokens",
            "batch_size",
            "tensor_parallel_size",
        ):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        share = self.gpu_memory_utilization
        allowed = share is None or 0 < share <= 1
        require(self, "gpu_memory_utilization", allowed, "above 0 and at most 1")
        require(self, "few_shot", self.few_shot >= 0, "0 or more")
        require(self, "temperature", 0 <= self.temperature < math.inf, "0 or more, and finite")
        if self.backend == "vllm" and self.decoding == "sample":
            allowed = self.temperature == 0 or 0.01 <= self.temperature <= 2
            require(self, "temperature", allowed, "0, or between 0.01 and 2 (backend vllm)")
        if self.decoding == "sample" and self.temperature == 0 and self.n_samples > 1:
            raise UserError(
                f"temperature 0 gives one answer, and n_samples is {self.n_samples}; give "
                "--n_samples 1 --k_values 1."
            )
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
class EvaluationRunConfig(RunConfig):
    """Inference and evaluation of one model: a run of its own under outputs/{task}."""

    kind = "evaluation"
    base: ModelLoadConfig = setting(flag=False, hashed=False)
    """The base model of the artifact, and how it is loaded."""
    run: str | None = setting(None, flag=False, hashed=False)
    """The directory of the run that is evaluated; None: the base model itself."""
    run_hash: str | None = setting(None, flag=False, hashed=False)
    sweetspot: str | None = setting(None, flag=False, hashed=False)
    """The label of its checkpoint; None: its final model."""
    artifact: str = setting(flag=False, hashed=False)
    """The name of the artifact: of the run, the sweetspot or the base model."""
    artifact_hash: str = setting(flag=False)
    """Hash of the artifact: of a run, of a base model, or of a run and a sweetspot's label."""
    dataset: str = setting(flag=False)
    version: str = setting(flag=False)
    """Changes when the test pool does."""
    data: DatasetConfig = setting(flag=False, hashed=False)
    """The dataset whose test pool is answered."""
    task: str = setting(flag=False)
    examples: DatasetConfig | None = setting(None, flag=False, before=None)
    """The worked examples before each prompt; None without."""
    sampling: PassAtKConfig = PassAtKConfig()
    is_default: bool = setting(True, flag=False, hashed=False)
    """Whether the sampling is the model's default."""

    @property
    def suffix(self) -> str:
        """`_eval-{hash8}` unless the sampling is the model's default."""
        return "" if self.is_default else f"_eval-{self.hash[:SHORT]}"

    @property
    def run_name(self) -> str:
        """The artifact's name and the suffix."""
        return self.artifact + self.suffix

    @property
    def evaluates(self) -> dict[str, Any]:
        """What is evaluated, as config.json names a parent."""
        return {"run_name": self.artifact, "hash": self.artifact_hash}


def sampling_config(
    model: str, values: Mapping[str, Any] | None = None, *, cuda: bool | None = None
) -> PassAtKConfig:
    """How a model is sampled: defaults, then collections.yaml, then `values`.

    `cuda`: whether that will be on CUDA; None: as this machine has it.
    """
    entry = site.collections().model(model)
    where = f"collections.yaml: models: {entry.name}: settings: evaluation"
    chosen = override((PassAtKConfig,), entry.settings.get("evaluation", {}), where)
    chosen = {"backend": AUTO} | chosen | dict(values or {})
    if chosen["backend"] == AUTO:
        chosen["backend"] = automatic(cuda)
    return build(PassAtKConfig, chosen)


def evaluation_config(
    base: ModelLoadConfig,
    *,
    dataset: str,
    task: str,
    sampling: PassAtKConfig,
    run: str | None = None,
    run_hash: str | None = None,
    sweetspot: str | None = None,
) -> EvaluationRunConfig:
    """The evaluation of a base model, of a run, or of a sweetspot of one, on the test pool of a
    dataset.
    """
    data = dataset_config(dataset, task, "test")
    default = replace(sampling_config(base.model), backend=sampling.backend)
    if run is not None:
        sampling, default = (replace(s, few_shot=0) for s in (sampling, default))
    shots = sampling.few_shot
    return EvaluationRunConfig(
        base=base,
        run=run,
        run_hash=run_hash,
        sweetspot=sweetspot,
        artifact=artifact_name(base, run, sweetspot),
        artifact_hash=artifact_hash(base, run_hash, sweetspot),
        dataset=dataset,
        version=data.version,
        data=data,
        task=site.collections().task(task),
        examples=dataset_config(dataset, task, "sft", shots) if shots else None,
        sampling=sampling,
        is_default=hashed_settings(sampling) == hashed_settings(default),
    )


def artifact_name(base: ModelLoadConfig, run: str | None, sweetspot: str | None) -> str:
    """What a model is called as something that is evaluated."""
    if run is None:
        return base.label
    return sweetspot_name(run, sweetspot) if sweetspot else run


def artifact_hash(base: ModelLoadConfig, run_hash: str | None, sweetspot: str | None) -> str:
    """Its hash: of the run, of the run and the sweetspot's label, or of the base model."""
    if run_hash is None:
        return base.identity_hash
    return sweetspot_hash(run_hash, sweetspot) if sweetspot else run_hash
