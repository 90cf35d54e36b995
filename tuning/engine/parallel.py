"""How a model and its optimizer are spread over the ranks: whole replicas (ddp), replicas with a
sharded optimizer (zero1), or shards of everything, over all ranks (fsdp2) or over those of a node
(hsdp); experts over the SEP group in the first three.

The loss is a sum over the whole global batch. Each rank's backward pass gives the gradients of its
own part of that sum, and gradients are summed over ranks. Experts have processed the tokens of
their whole SEP group already, so their gradients are summed over data-parallel ranks only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tuning.engine import attention, loading, sep
from tuning.engine.ranks import Layout
from tuning.runs.errors import UserError

SHARDED = ("fsdp2", "hsdp")
"""Those that shard the weights."""
ParamGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParamGroups], torch.optim.Optimizer]
"""From parameter groups, each with its own weight_decay, to an optimizer."""


@dataclass(kw_only=True)
class Spread:
    """A model on this rank, with its optimizers."""

    model: nn.Module
    """The module to call; under ddp and zero1, the DDP wrapper."""
    module: nn.Module
    """The same without the wrapper: names and parameters."""
    kind: str
    """`alone` (one process), ddp, zero1, fsdp2 or hsdp."""
    layout: Layout
    experts: set[str] = field(default_factory=set)
    """Names of the parameters that are split over the SEP group."""
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)

    @property
    def routed(self) -> bool:
        """Whether the model is a mixture of experts."""
        return getattr(self.config, "num_experts_per_tok", None) is not None

    @property
    def config(self) -> Any:
        """The model's config of transformers."""
        return self.module.config

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of everything that is trained."""
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch. DDP reduces gradients with the last one of
        a step; FSDP reduces them at once, since it keeps only its shard.
        """
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of this rank's part of the loss. DDP and FSDP average gradients over ranks;
        multiply by the world size to get the sum.
        """
        (loss * self.layout.world if self.kind != "alone" else loss).backward()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without gradients and without dropout."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def clip(self, most: float) -> torch.Tensor:
        """Scale all gradients to a global norm of at most `most`; returns the norm before. Reduces
        the gradients of experts first, which DDP leaves out.
        """
        if self.kind == "alone":
            return nn.utils.clip_grad_norm_(self.module.parameters(), most)
        if self.kind not in SHARDED:
            self._sum_experts()
        parts = self._gradients()
        squares = [self._square(where, tensors) for where, tensors in parts.items()]
        norm = torch.stack(squares).sum().sqrt()
        for tensors in parts.values():
            clip_grads_with_norm_(tensors, most, norm)
        return norm

    def _gradients(self) -> dict[Any, list[nn.Parameter]]:
        """Parameters with gradients, grouped by how they are spread."""
        parts: dict[Any, list[nn.Parameter]] = {}
        for name, p in self.trained():
            where = p.device_mesh if isinstance(p, DTensor) else name in self.experts
            if p.grad is not None:
                parts.setdefault(where, []).append(p)
        return parts

    def _square(self, where: Any, parameters: list[nn.Parameter]) -> torch.Tensor:
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        square = norm.float() ** 2
        if where is True:
            distributed.all_reduce(square, group=self.layout.sep_group)
        return square

    def _sum_experts(self) -> None:
        """All-reduce the gradients of experts, which DDP ignores: each rank has other experts."""
        assert self.layout.mesh is not None
        for name, p in self.trained():
            if name in self.experts and p.grad is not None:
                distributed.all_reduce(p.grad, group=self.layout.mesh["dp"].get_group())
                p.grad /= self.layout.world

    def step(self, rate: float) -> None:
        """One step of every optimizer at a learning rate; gradients are cleared."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()


def check(config: Any, sep_size: int, longest: int | None = None) -> None:
    """Raise UserError if a model of a config cannot be split over `sep_size` ranks."""
    if sep_size == 1:
        return
    heads = config.num_attention_heads
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    for what, number in (
        ("num_attention_heads", heads),
        ("num_experts", experts),
        ("seq_len", longest),
    ):
        if number and number % sep_size:
            raise UserError(f"sep_size {sep_size} does not divide {what} {number}; lower it")
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        raise UserError(
            f"sep_size {sep_size}: {config.model_type} attends over a sliding window, which "
            f"sequence parallelism here does not support; use --sep_size 1"
        )


def spread(
    model: Any,
    layout: Layout,
    *,
    parallel: str = "fsdp2",
    half: bool = False,
    device: torch.device | None = None,
) -> Spread:
    """Spread a model over all ranks.

    Args:
        model: With weights on rank 0; the other ranks may have it on the meta device.
        layout: From `ranks.layout()`.
        parallel: ddp, zero1, fsdp2 or hsdp; not used by a single process.
        half: Compute in bfloat16 (fsdp2 and hsdp gather parameters in it, and reduce gradients in
            fp32).
        device: Where to compute; None: the GPU if there is one, else the CPU.
    """
    held = _prepared(model)
    if layout.mesh is None:
        nn.Module.to(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return Spread(model=model, module=model, kind="alone", layout=layout)
    check(model.config, layout.sep_size)
    device = device or torch.device(layout.mesh.device_type)
    shared = held if layout.sep_size > 1 else []
    experts = {f"{n}.{p}" for n, m in shared for p, _ in m.named_parameters(recurse=False)}
    if layout.sep_group is not None:
        sep.join(model, layout.sep_group)
    if parallel in SHARDED:
        whole = layout.everyone if parallel == "fsdp2" else layout.by_node()
        _shard(model, [m for _, m in shared], layout, whole, half, device)
        return Spread(model=model, module=model, kind=parallel, layout=layout, experts=experts)
    loading.materialize(model, device)
    for _, module in shared:
        _keep_part(module, layout, as_dtensor=False)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(experts))
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False)
    return Spread(model=wrapped, module=model, kind=parallel, layout=layout, experts=experts)


def _prepared(model: Any) -> list[tuple[str, nn.Module]]:
    """Switch a model to our attention, and to our experts if it has any; returns those by name."""
    model.set_attn_implementation(attention.NAME)
    model.config.use_cache = False
    sep.register()
    held = sep.expert_modules(model)
    if held:
        model.set_experts_implementation(sep.EXPERTS)
    return held


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a Hugging Face causal language model."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of transformer blocks")
    return max(lists, key=lambda blocks: sum(p.numel() for b in blocks for p in b.parameters()))


def _shard(
    model: nn.Module,
    experts: list[nn.Module],
    layout: Layout,
    everywhere: DeviceMesh | None,
    half: bool,
    device: torch.device,
) -> None:
    """FSDP2, block by block, so that a rank holds the whole weights of one block at a time;
    over the last dimension of a mesh, with replicas over the first of two."""
    assert layout.mesh is not None
    assert everywhere is not None
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32
    )
    for block in layers_of(model):
        loading.materialize(block, device)
        for module in [m for m in block.modules() if m in experts]:
            _keep_part(module, layout, as_dtensor=True)
            sharded: Any = fully_shard(module, mesh=layout.mesh["dp"], mp_policy=policy)
            sharded.set_gradient_divide_factor(layout.world)
            # gloo cannot scale while it reduces, so the sum is forced; with one rank, where torch
            # 2.13 would then divide twice, it is not.
            sharded.set_force_sum_reduction_for_comms(layout.dp_size > 1)
        fully_shard(block, mesh=everywhere, mp_policy=policy)
    loading.materialize(model, device)
    fully_shard(model, mesh=everywhere, mp_policy=policy)


def _keep_part(module: nn.Module, layout: Layout, *, as_dtensor: bool) -> None:
    """Keep only this rank's experts of the SEP group."""
    assert layout.mesh is not None
    for name, p in list(module.named_parameters(recurse=False)):
        part = p.detach().chunk(layout.sep_size)[layout.sep_rank].clone()
        if as_dtensor:
            part = DTensor.from_local(part, layout.mesh["sep"], [Shard(0)], run_check=False)
        setattr(module, name, nn.Parameter(part, requires_grad=p.requires_grad))


def add_optimizers(spread: Spread, factory: OptimizerFactory, weight_decay: float) -> None:
    """Add optimizers over all trained parameters: matrices decay, vectors do not (GPT-3, appendix
    B).

    Parameters that are spread differently are in separate groups. Under zero1 each rank has the
    optimizer state of its share of the tensors.
    """
    alike: dict[Any, list[nn.Parameter]] = {}
    for name, p in spread.trained():
        where = p.device_mesh if isinstance(p, DTensor) else name in spread.experts
        alike.setdefault(where, []).append(p)
    if spread.kind != "zero1":
        groups = [g for ps in alike.values() for g in _decayed(ps, weight_decay)]
        spread.optimizers = [factory(groups)] if groups else []
        return
    assert spread.layout.mesh is not None
    for expert, parameters in alike.items():
        mesh = spread.layout.mesh["dp"] if expert else spread.layout.everyone
        assert mesh is not None
        group = mesh.get_group()
        kind: Any = factory
        spread.optimizers.append(
            ZeroRedundancyOptimizer(_decayed(parameters, weight_decay), kind, group)
        )


def _decayed(parameters: Iterable[nn.Parameter], weight_decay: float) -> ParamGroups:
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
