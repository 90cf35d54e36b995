"""What is tuned, as the search sees it: the method and its knobs, the candidates, the workload in
numbers, and what a candidate means for the run's own settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tuning.autotune.config import AutotuneRunConfig
from tuning.autotune.rows import POOLS, Sample, artifact, is_unpaired, target_of
from tuning.autotune.space import KNOBS, Candidate, Space
from tuning.autotune.terms import flops_of
from tuning.autotune.workload import Device, Workload
from tuning.config import DatasetEntry
from tuning.data import train_dataset
from tuning.engine.config import DataConfig, OutputConfig
from tuning.engine.run_config import shape_of
from tuning.methods import METHODS
from tuning.runs import provenance
from tuning.sweetspots.config import PassAtKStoppingConfig, PerplexityConfig
from tuning.training.config import engine_weights, largest_divisor, state_bytes
from tuning.weights.config import in_half
from tuning.weights.hub import snapshot_folder
from tuning.weights.shape import Adapter, Shape, adapter_of, read_shape

NEVER = 10**9
"""More steps than any trial has."""
FOUR_BIT = 4.127 / 8
"""Bytes of a parameter in 4 bits, with its scales (QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True, kw_only=True)
class _OfPreference(Space):
    """Without micro-batches that the settings of a small fork cannot express."""

    whole: int
    """The effective batch of the settings."""

    def _sizes(self, sep: int) -> list[int | None]:
        sizes = super()._sizes(sep)
        return [s for s in sizes if s is None or _setting(s, self.target, self.whole)]


class Subject:
    """A run that is tuned on a device."""

    def __init__(self, config: AutotuneRunConfig, sample: Sample, device: Device) -> None:
        self.config, self.sample, self.run = config, sample, config.trained
        self.device = replace(device, capacity=int(device.capacity * self._left))

    @property
    def _left(self) -> float:
        """The share of the device's memory that a vLLM which is kept beside the training leaves; no
        trial has one.
        """
        p = self.run.pass_at_k if self.config.serves == "sft" else None
        kept = p and p.rules and p.pass_at_k_backend == "vllm" and p.use_persistent_vllm
        return 1 - p.vllm_gpu_memory_utilization if p and kept else 1.0

    @cached_property
    def cuda(self) -> bool:
        """Whether it trains on GPUs."""
        return bool(provenance.gpus())

    @property
    def on_engine(self) -> bool:
        """Whether the engine trains it."""
        return on_engine(self.config)

    @property
    def method(self) -> str:
        """Its name in KNOBS."""
        if self.config.serves == "pretrain":
            return _pretraining(self.run)
        if self.config.serves == "sft":
            return "engine_sft" if self.on_engine else "sft"
        name = str(self.run.pft_method)
        if name in KNOBS:
            return name
        return "dpo" if METHODS[name].micro_batches else "kto"

    @cached_property
    def space(self) -> Space:
        """The candidates."""
        made: Any = Space
        if self.config.serves == "pft":
            made = partial(_OfPreference, whole=self.run.training.effective_batch_size)
        space: Space = made(
            target=target_of(self.config),
            processes=self.config.processes,
            method=self.method,
            longest=self._longest_pass,
            mean=self.sample.mean,
            fixed_micro_batch=self._fixed_micro_batch,
            sep_sizes=self._sep_sizes,
            compiles=self.cuda,
            precision="bf16" if self.cuda else "fp32",
        )
        return space

    @property
    def own(self) -> Candidate | None:
        """The run's own settings as a candidate; None if they are none."""
        c, knobs = self.run.compute, self.space.knobs
        target = self.space.target
        micro = largest_divisor(target, c.micro_batch_size or target)
        if self.on_engine:
            share = target * c.sep_size // self.config.processes
            micro = min(c.micro_batch_size or share, share)
        checkpointing = c.gradient_checkpointing
        if checkpointing is None:
            checkpointing = self.cuda and not self.on_engine
        sharded = self.config.processes > 1 and c.parallel == "fsdp2"
        found = Candidate(
            micro_batch=micro if knobs.micro_batch else None,
            gradient_checkpointing=checkpointing,
            sharding="full_shard" if sharded and self.on_engine else "none",
            max_tokens_per_gpu=c.max_tokens_per_gpu if knobs.token_budget else None,
            use_compile=c.use_compile,
            sep_size=c.sep_size,
            precision=self.space.precision,
        )
        return found if found in self.space.candidates else None

    @property
    def _longest_pass(self) -> int | None:
        """The least token budget: every example that the run may have fits it."""
        if self.method == "engine_sft":
            return int(self.run.model.max_seq_length)
        return self.sample.longest

    @property
    def _fixed_micro_batch(self) -> int | None:
        if self.method == "kto":
            rows = int(self.run.training.kl_batch_size) // self.config.processes
            return max(1, rows // self._sequences)
        return self.run.compute.micro_batch_size if self.method == "pretrain_fixed" else None

    @property
    def _sep_sizes(self) -> tuple[int, ...]:
        """Sizes that divide heads and sequences; only offered where a sequence is long."""
        if not (self.on_engine and self.config.processes > 1 and self.sample.longest >= 8192):
            return (1,)
        heads = self.shape.linears["q_proj"][1] // 64 if self.shape else 1
        sizes = (2**n for n in range(4))
        fit = (s for s in sizes if heads % s == 0 and self.sample.longest % s == 0)
        return tuple(s for s in fit if self.config.processes % s == 0) or (1,)

    @cached_property
    def workload(self) -> Workload:
        """The training in numbers."""
        made = Workload.of(
            self._known_shape,
            None if self._trains_all else self._adapter,
            longest=self.sample.longest,
            mean=self.sample.mean,
            sequences=self._sequences,
            lengths=self.sample.lengths,
            sampled=self.run.training.max_completion_length if self.method == "grpo" else 0,
            padded=not KNOBS[self.method].token_budget,
            reference=self._reference,
            weight_bytes=self._weight_bytes,
            optimizer_bytes=self._optimizer_bytes,
        )
        if not self.on_engine or self.config.serves == "pretrain":
            return made
        weights = engine_weights(self._known_shape, self.run.engine)
        return replace(made, parameters=weights.saved, trained=weights.trained)

    @property
    def rows(self) -> int:
        """Examples of a step of a trial: those of a real one, or all that there are."""
        numbers = self.sample.numbers
        return self.space.target if numbers is None else len(numbers)

    @property
    def tokens_per_step(self) -> float:
        """Of a step of a trial, over all devices, padding left out."""
        return self.rows * self.workload.sequences * self.workload.mean

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of a step of a trial, over all devices."""
        return flops_of(self.workload, self.space) * self.rows / self.space.target

    @property
    def _sequences(self) -> int:
        if self.config.serves != "pft":
            return 1
        if self.method == "grpo":
            return int(self.run.training.num_generations)
        return 1 if is_unpaired(self.config) else 2

    @property
    def _reference(self) -> str:
        rewarded = self.method == "grpo" and not self.run.training.grpo_beta
        if self.config.serves != "pft" or rewarded:
            return "none"
        return "copy" if self._trains_all else "adapter"

    @property
    def _trains_all(self) -> bool:
        """Whether all weights are trained, and no adapter."""
        return self.on_engine or bool(self.run.lora.full)

    @property
    def _weight_bytes(self) -> float:
        """Of a parameter between steps; what is trained is float32."""
        if self._trains_all:
            return 4.0
        loaded = 2.0 if in_half(self.run.model.dtype, cuda=self.cuda) else 4.0
        if not self.run.model.load_in_4bit:
            return loaded
        shape = self._known_shape
        share = shape.layers * sum(n * m for n, m in shape.linears.values()) / shape.parameters
        return share * FOUR_BIT + (1 - share) * loaded  # embedding and head stay as they are

    @property
    def _optimizer_bytes(self) -> float:
        """Of a trained parameter; the engine's AdamW has no smaller moments."""
        name = "adamw_torch" if self.on_engine else self.run.training.optimizer
        return float(state_bytes(name, cuda=self.cuda))

    @property
    def _adapter(self) -> Adapter:
        return adapter_of(self._known_shape, self.run.lora)

    @cached_property
    def shape(self) -> Shape | None:
        """The shape of the model; None for an architecture that is not known."""
        if self.config.serves == "pretrain":
            if self.run.source is None:
                return shape_of(self.run.shape)
            return read_shape(_folder(self.run.source))
        return read_shape(_folder(artifact(self.config).base))

    @cached_property
    def _known_shape(self) -> Shape:
        """The shape, or one of as many parameters."""
        return self.shape or _counted(
            self.run.source if self.config.serves == "pretrain" else artifact(self.config).base
        )


def on_engine(config: AutotuneRunConfig) -> bool:
    """Whether the engine trains the run."""
    return config.serves == "pretrain" or config.trained.trainer == "engine"


def tuned(config: AutotuneRunConfig, candidate: Candidate) -> Any:
    """The run, computed as a candidate says."""
    run = config.trained
    changed: dict[str, Any] = {"gradient_checkpointing": candidate.gradient_checkpointing}
    if candidate.micro_batch is not None:
        micro = candidate.micro_batch
        if config.serves == "pft":
            whole = run.training.effective_batch_size
            micro = _setting(micro, target_of(config), whole) or micro
        changed["micro_batch_size"] = micro
    if candidate.max_tokens_per_gpu is not None:
        changed["max_tokens_per_gpu"] = candidate.max_tokens_per_gpu
    if on_engine(config):
        changed |= {"use_compile": candidate.use_compile, "sep_size": candidate.sep_size}
        if config.processes > 1:
            changed["parallel"] = candidate.compute_config().parallel
    return replace(run, compute=replace(run.compute, **changed))


def _setting(micro: int, target: int, whole: int) -> int | None:
    """The setting that makes a micro-batch of `micro` where a step has `target` examples: it
    divides the whole effective batch, and the trainer takes the largest divisor of `target` that is
    not above it. None if there is no such setting.
    """
    sizes = (d for d in range(1, whole + 1) if whole % d == 0)
    return next((d for d in sizes if largest_divisor(target, d) == micro), None)


def _pretraining(run: Any) -> str:
    if run.has_experts or run.truncated_at is not None:
        return "pretrain_fixed"
    return "pretrain_packed" if run.training.packed else "pretrain"


def _folder(location: str) -> Path:
    """The folder of a model, also of one of the hub; a folder that is not there if it is not."""
    path = Path(location)
    return path if path.is_dir() else snapshot_folder(location) or path


def _counted(location: str) -> Shape:
    """A shape for a model of an unknown architecture, with as many parameters in its blocks."""
    import torch

    from tuning.engine.model import skeleton
    from tuning.weights.reading import read_config

    config = read_config(location)
    text = config.get_text_config()
    model = skeleton(config, torch.float32)
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    total = sum(p.numel() for p in model.parameters())
    blocks = max(1, total - int(text.vocab_size) * hidden) // layers
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return Shape(
        layers=layers,
        linears={
            "q_proj": (hidden, max(1, blocks // hidden - 3 * inner)),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        },
        vocabulary=int(text.vocab_size),
        hidden=hidden,
        tied=True,
    )


def of_trial(
    config: AutotuneRunConfig, candidate: Candidate, files: dict[str, str], rows: int, steps: int
) -> Any:
    """The config of a trial: the run's own, computed as a candidate says, on the rows of the trial,
    for `steps` optimizer steps, without sweetspots, checkpoints or exports.
    """
    run = tuned(config, candidate)
    if config.serves == "pretrain":
        return _short_pretraining(run, files, rows, steps)
    kind, (pool, *_) = run.dataset.dataset_type, POOLS[config.serves]
    entry = DatasetEntry(name="autotune", loader="jsonl", files=files)
    dataset = replace(
        run.dataset,
        dataset=entry.name,
        loader=entry.loader,
        files=files,
        system_message=None,
        version=train_dataset.version(entry, kind),
        train_size=train_dataset.pool_size(entry, pool),
    )
    training = replace(run.training, num_train_epochs=float(steps), save_steps=NEVER)
    changed: dict[str, Any] = {"dataset": dataset, "training": training}
    if config.serves == "sft":
        changed["perplexity"] = PerplexityConfig(
            eval_steps=NEVER, validation_size=1, early_stop=False
        )
        changed["pass_at_k"] = PassAtKStoppingConfig()
    return replace(run, **changed)


def _short_pretraining(run: Any, files: dict[str, str], rows: int, steps: int) -> Any:
    mock = DataConfig(use_mock_data=True, mock_data_num_samples=rows)
    return replace(
        run,
        data=DataConfig(data_path=files["rows"], on_long=run.data.on_long) if files else mock,
        training=replace(
            run.training, training_mode="step", max_steps=steps, max_tokens=None, max_epochs=1
        ),
        output=OutputConfig(debug=True),
    )
