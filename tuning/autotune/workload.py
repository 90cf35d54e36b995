"""What is trained and on what, in numbers: all that a prediction of memory and time starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuning.autotune.space import Precision
from tuning.engine.peaks import rates_of
from tuning.weights.shape import Adapter, Shape

Reference = Literal["none", "adapter", "copy"]
"""Of a preference method: no reference model; the same weights with another adapter or none; a
second model."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training, as far as its memory and speed depend on it."""

    parameters: int
    """All weights of the model."""
    trained: int
    """Those that are trained: all, or an adapter's."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the MLP."""
    vocabulary: int
    longest: int
    """Tokens of the longest sequence."""
    mean: float
    """Tokens of a sequence on average, without padding."""
    sequences: int = 1
    """Of an example: 2 for a pair (DPO, KTO), the completions of a prompt (GRPO)."""
    lengths: tuple[int, ...] = ()
    """Of a sample of the sequences: how much padding a larger micro-batch means. Without it that
    is guessed from longest and mean."""
    padded: bool = True
    """Whether the sequences of a forward pass are padded to the longest of them."""
    sampled: int = 0
    """Tokens of the longest completion that is sampled in every step (GRPO)."""
    reference: Reference = "none"
    weight_bytes: float = 2.0
    """Of a parameter as it is held between steps."""
    gradient_bytes: float = 4.0
    """Of a trained parameter."""
    optimizer_bytes: float = 8.0
    """Of a trained parameter: two moments, and where the weights are not fp32 a copy that is."""

    @classmethod
    def of(cls, shape: Shape, adapter: Adapter | None = None, **more: object) -> Workload:
        """Of a shape and the adapter that is trained over it (None: all weights are).

        `more`: every field that does not follow from them, such as longest and mean.
        """
        return cls(
            parameters=shape.parameters + (adapter.trained if adapter else 0),
            trained=adapter.trained if adapter else shape.parameters,
            layers=shape.layers,
            hidden=shape.hidden,
            intermediate=max((m for _, m in shape.linears.values()), default=4 * shape.hidden),
            vocabulary=shape.vocabulary,
            **more,  # type: ignore[arg-type]
        )

    @property
    def lora(self) -> bool:
        """Whether only a part of the weights is trained."""
        return self.trained < self.parameters

    @property
    def flops_per_token(self) -> float:
        """Of forward and backward of the trained model, without attention (PaLM, arXiv 2204.02311,
        appendix B): 2 forward and 2 backward a weight, and 2 more a trained one."""
        return 4.0 * self.parameters + 2.0 * self.trained

    @property
    def forward_share(self) -> float:
        """FLOPs of a forward pass over those of forward and backward."""
        return 2.0 * self.parameters / self.flops_per_token

    @property
    def attention_flops(self) -> float:
        """Of forward and backward, a squared token of a sequence; the causal half."""
        return 6.0 * self.layers * self.hidden


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a training runs on: `count` equal devices on `nodes` computers."""

    name: str
    """As its driver calls it."""
    capacity: int
    """Bytes of memory that one of them has, or may use."""
    peak_flops: float | None = None
    """FLOP/s of one of them; None if unknown, as on a CPU (whose name begins with `cpu`)."""
    count: int = 1
    nodes: int = 1

    @classmethod
    def named(
        cls,
        name: str,
        capacity: int,
        *,
        count: int = 1,
        nodes: int = 1,
        precision: Precision = "bf16",
    ) -> Device:
        """A device with the peak that its vendor publishes, if it is known (engine/peaks.py)."""
        rates = rates_of(name)
        rate = getattr(rates, precision) if rates else None
        peak = None if rate is None else rate * 1e12
        return cls(name=name, capacity=capacity, peak_flops=peak, count=count, nodes=nodes)
