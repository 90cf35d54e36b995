"""What the autotuner chooses from: the candidates of a training, and what each means as the
settings that training reads.

A candidate changes memory and speed and never the result, so a method offers only the knobs that
leave its result alone, and only values by which the effective batch comes out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from tuning.engine.config import ComputeConfig
from tuning.runs.errors import UserError, choose

Sharding = Literal["none", "full_shard", "hybrid_shard"]
Precision = Literal["bf16", "fp32"]
_PARALLEL: dict[str, Literal["ddp", "fsdp2", "hsdp"]] = {
    "none": "ddp",
    "full_shard": "fsdp2",
    "hybrid_shard": "hsdp",
}
LARGEST_MICRO_BATCH = 256
"""Examples of a forward pass; more has never been faster, and every value is a candidate."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to compute an optimizer step. What a method has no knob for is at its default."""

    micro_batch: int | None = None
    """Examples in a forward pass of a rank; None: the method says how many (KTO), or
    max_tokens_per_gpu does."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""
    sharding: Sharding = "none"
    """Replicas, shards over all processes, or shards within a node and replicas over nodes."""
    max_tokens_per_gpu: int | None = None
    """Tokens of a forward pass and rank, in place of micro_batch (packing)."""
    use_compile: bool = False
    """torch.compile every transformer block."""
    sep_size: int = 1
    """Ranks that share each sequence."""
    precision: Precision = "bf16"
    """Of matrix products: bf16 on CUDA, fp32 elsewhere; not searched."""

    def compute_config(self) -> ComputeConfig:
        """The settings that a training reads, on the engine."""
        return ComputeConfig(
            micro_batch_size=self.micro_batch,
            max_tokens_per_gpu=self.max_tokens_per_gpu,
            gradient_checkpointing=self.gradient_checkpointing,
            parallel=_PARALLEL[self.sharding],
            sep_size=self.sep_size,
            use_compile=self.use_compile,
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Short, for tables: `8 examples, checkpointing, full_shard`."""
        size = "default batch" if self.micro_batch is None else f"{self.micro_batch} examples"
        if self.max_tokens_per_gpu is not None:
            size = f"{self.max_tokens_per_gpu} tokens"
        parts = [size]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += [self.sharding] if self.sharding != "none" else []
        parts += ["compile"] if self.use_compile else []
        parts += [f"sep {self.sep_size}"] if self.sep_size > 1 else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What of a training changes nothing but memory and speed."""

    micro_batch: bool = True
    token_budget: bool = False
    """max_tokens_per_gpu in place of a micro-batch."""
    sharding: tuple[Sharding, ...] = ("none",)
    use_compile: bool = False
    sep_size: bool = False


_ENGINE: dict[str, Any] = {
    "sharding": ("none", "full_shard", "hybrid_shard"),
    "use_compile": True,
    "sep_size": True,
}
KNOBS = {
    "sft": Knobs(),
    "dpo": Knobs(),
    "kto": Knobs(micro_batch=False),
    "grpo": Knobs(),
    "engine_sft": Knobs(micro_batch=False, token_budget=True, **_ENGINE),
    "pretrain": Knobs(**_ENGINE),
    "pretrain_packed": Knobs(micro_batch=False, token_budget=True, **_ENGINE),
    "pretrain_fixed": Knobs(micro_batch=False, **_ENGINE),
}
"""By what is trained; gradient checkpointing is a knob of all. TRL trains on one device. KTO
estimates its KL term within a micro-batch, so that it is part of the result; pretrain_fixed is for
experts, which are balanced over one, and for samples that are cut at the token budget."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The candidates of one training on one set of devices."""

    target: int
    """Examples (sequences in pre-training) of an optimizer step, over all processes."""
    processes: int = 1
    """Ranks, one a device."""
    nodes: int = 1
    """Computers that the ranks are on, the same number on each."""
    method: str = "sft"
    """A name of KNOBS."""
    longest: int | None = None
    """Tokens of the longest example; with a token budget."""
    mean: float | None = None
    """Tokens of an example on average; with a token budget (default: longest)."""
    fixed_micro_batch: int | None = None
    """Examples in a forward pass, where the method has no knob for it (KTO: half of kl_batch_size);
    default: the whole share of a rank."""
    sep_sizes: tuple[int, ...] = (1,)
    """Sizes of a sequence-parallel group that the model allows; with the knob."""
    compiles: bool = False
    """Whether torch.compile is to be tried; with the knob."""
    sharding: tuple[Sharding, ...] | None = None
    """In place of the method's, for trainers that have others."""
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        choose("method", self.method, KNOBS)
        for name in ("target", "processes", "nodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.processes % self.nodes:
            raise UserError(f"{self.nodes} nodes do not divide {self.processes} processes")
        if self.knobs.token_budget and not self.longest:
            raise UserError(f"method {self.method} needs the length of its longest example")

    @property
    def knobs(self) -> Knobs:
        """Those of the method."""
        return KNOBS[self.method]

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate once, from the least to the most memory in each knob.

        Raises UserError if none gives the effective batch exactly.
        """
        found = tuple(self._all())
        if not found:
            raise UserError(
                f"no micro-batch divides {self.target} examples over {self.processes} processes; "
                f"take an effective batch that is a multiple of {self.processes}"
            )
        return found

    def accumulation(self, candidate: Candidate) -> int:
        """Forward passes of a rank in an optimizer step: exactly
        target / (micro_batch * data-parallel ranks), or with a token budget about as many as the
        mean length gives.
        """
        ranks = self.processes // candidate.sep_size
        if candidate.max_tokens_per_gpu is not None:
            tokens = self.target * (self.mean or self.longest or 1)
            return math.ceil(tokens / (ranks * candidate.max_tokens_per_gpu))
        micro = candidate.micro_batch or self.fixed_micro_batch
        return math.ceil(self.target / (ranks * micro)) if micro else 1

    def compute_config(self, candidate: Candidate) -> ComputeConfig:
        """The settings that the training of this space reads; what it refuses is at its default."""
        found = candidate.compute_config()
        if self.processes > 1:
            return found
        return replace(found, parallel=ComputeConfig().parallel)

    def _all(self) -> Iterator[Candidate]:
        compiles = (False, True) if self.knobs.use_compile and self.compiles else (False,)
        for sep in self._sep_sizes():
            choices = product(self._shardings(sep), compiles, (True, False), self._sizes(sep))
            for sharding, compiled, checkpointing, size in choices:
                yield Candidate(
                    micro_batch=None if self.knobs.token_budget else size,
                    max_tokens_per_gpu=size if self.knobs.token_budget else None,
                    gradient_checkpointing=checkpointing,
                    sharding=sharding,
                    use_compile=compiled,
                    sep_size=sep,
                    precision=self.precision,
                )

    def _sep_sizes(self) -> list[int]:
        sizes = self.sep_sizes if self.knobs.sep_size else (1,)
        return [size for size in sizes if self.processes % size == 0]

    def _shardings(self, sep: int) -> list[Sharding]:
        """More than one process to shard over; hybrid over several nodes of several processes."""
        offered = self.knobs.sharding if self.sharding is None else self.sharding
        possible: dict[Sharding, bool] = {
            "full_shard": self.processes > 1,
            "hybrid_shard": 1 < self.nodes < self.processes and sep == 1,
            "none": True,
        }
        found = [kind for kind, can in possible.items() if can and kind in offered]
        return found or ["none"]

    def _sizes(self, sep: int) -> list[int | None]:
        """Micro-batches that divide the share of a rank; token budgets that hold the longest
        example, each twice the one before, up to the share of a rank."""
        ranks = self.processes // sep
        if self.knobs.token_budget:
            return list(self._budgets(ranks))
        if not self.knobs.micro_batch:
            return [None]
        if self.target % ranks:
            return []
        share = self.target // ranks
        most = min(share, LARGEST_MICRO_BATCH)
        return [size for size in range(1, most + 1) if share % size == 0]

    def _budgets(self, ranks: int) -> Iterator[int]:
        assert self.longest is not None
        budget, share = self.longest, self.target * (self.mean or self.longest) / ranks
        yield budget
        while budget < share:
            budget *= 2
            yield budget
