"""How a model and its optimizer are spread over the processes: whole replicas (ddp), with shards of
the optimizer (zero1), or shards of everything (fsdp2); experts over the SEP group in all three.

The rule behind all of it: each process's backward pass gives the gradients of its own part of a
loss that is a sum over the whole global batch, and gradients are summed over processes. Experts
have seen the tokens of their whole SEP group already, so they are summed over data-parallel ranks
only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tuning.engine import attention, loading, sep
from tuning.engine.ranks import Layout
from tuning.runs.errors import UserError

ParamGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParamGroups], torch.optim.Optimizer]
"""From groups of parameters, each with its own weight_decay, to an optimizer over them."""


@dataclass(kw_only=True)
class Spread:
    """A model in place on this process, with its optimizers."""

    model: nn.Module
    """What is called."""
    module: nn.Module
    """The same without a wrapper: names and parameters."""
    kind: str
    """`alone`, ddp, zero1 or fsdp2."""
    layout: Layout
    experts: set[str] = field(default_factory=set)
    """Names of the parameters of which each process of the SEP group has a part."""
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)

    @property
    def routed(self) -> bool:
        """Whether the model is a mixture of experts."""
        return getattr(self.config, "num_experts_per_tok", None) is not None

    @property
    def config(self) -> Any:
        """The model's shape, as transformers has it."""
        return self.module.config

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of all that is trained."""
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: replicas exchange gradients with the last
        one of a step; shards at once, which is what keeps them small.
        """
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of this process's part of the loss; wrappers take means, and sums are asked."""
        (loss * self.layout.world if self.kind != "alone" else loss).backward()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without gradients and dropout."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def clip(self, most: float) -> torch.Tensor:
        """Sum up what is not yet, then scale all gradients to a global norm of at most `most`;
        the norm before.
        """
        if self.kind == "alone":
            return nn.utils.clip_grad_norm_(self.module.parameters(), most)
        if self.kind != "fsdp2":
            self._sum_experts()
        parts = self._gradients()
        squares = [self._square(where, tensors) for where, tensors in parts.items()]
        norm = torch.stack(squares).sum().sqrt()
        for tensors in parts.values():
            clip_grads_with_norm_(tensors, most, norm)
        return norm

    def _gradients(self) -> dict[Any, list[nn.Parameter]]:
        """Trained parameters by how they are spread."""
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
        """Experts are left out of the replicas' exchange, since each process has others."""
        assert self.layout.mesh is not None
        for name, p in self.trained():
            if name in self.experts and p.grad is not None:
                distributed.all_reduce(p.grad, group=self.layout.mesh["dp"].get_group())
                p.grad /= self.layout.world

    def step(self, rate: float) -> None:
        """One step of every optimizer at a learning rate; gradients are dropped."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()


def check(config: Any, sep_size: int, longest: int | None = None) -> None:
    """Raise UserError where a model (its transformers config) cannot be shared by `sep_size`
    processes.
    """
    if sep_size == 1:
        return
    heads = config.num_attention_heads
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    for what, number in (("num_attention_heads", heads), ("num_experts", experts),
                         ("seq_len", longest)):  # fmt: skip
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
    """Put a model in place on all processes.

    Args:
        model: With weights on the first process; the others may have it on the meta device.
        layout: From `ranks.layout()`.
        parallel: ddp, zero1 or fsdp2; one process alone does without.
        half: Compute in bfloat16 (under fsdp2, parameters travel in it, and are summed in fp32).
        device: Where to compute; None: where the model is, or the GPU.
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
    if parallel == "fsdp2":
        _shard(model, [m for _, m in shared], layout, half, device)
        return Spread(model=model, module=model, kind=parallel, layout=layout, experts=experts)
    loading.materialize(model, device)
    for _, module in shared:
        _keep_part(module, layout, as_dtensor=False)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(experts))
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False)
    return Spread(model=wrapped, module=model, kind=parallel, layout=layout, experts=experts)


def _prepared(model: Any) -> list[tuple[str, nn.Module]]:
    """Give a model our attention, and our experts where it has some; those by name."""
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
    model: nn.Module, experts: list[nn.Module], layout: Layout, half: bool, device: torch.device
) -> None:
    """FSDP2, block by block: whole weights of one block at a time are on a process."""
    assert layout.mesh is not None
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32
    )
    everywhere = layout.everyone
    assert everywhere is not None
    for block in layers_of(model):
        loading.materialize(block, device)
        for module in [m for m in block.modules() if m in experts]:
            _keep_part(module, layout, as_dtensor=True)
            sharded: Any = fully_shard(module, mesh=layout.mesh["dp"], mp_policy=policy)
            sharded.set_gradient_divide_factor(layout.world)
            # gloo cannot scale as it sums; asked of one rank, torch 2.13 divides twice.
            sharded.set_force_sum_reduction_for_comms(layout.dp_size > 1)
        fully_shard(block, mesh=everywhere, mp_policy=policy)
    loading.materialize(model, device)
    fully_shard(model, mesh=everywhere, mp_policy=policy)


def _keep_part(module: nn.Module, layout: Layout, *, as_dtensor: bool) -> None:
    """Leave a process of the SEP group its own experts only."""
    assert layout.mesh is not None
    for name, p in list(module.named_parameters(recurse=False)):
        part = p.detach().chunk(layout.sep_size)[layout.sep_rank].clone()
        if as_dtensor:
            part = DTensor.from_local(part, layout.mesh["sep"], [Shard(0)], run_check=False)
        setattr(module, name, nn.Parameter(part, requires_grad=p.requires_grad))


def add_optimizers(spread: Spread, factory: OptimizerFactory, weight_decay: float) -> None:
    """Optimizers over what is trained: matrices decay, vectors do not (GPT-3, appendix B).

    Parameters that are spread differently stand in groups of their own. Under zero1 each process
    has the optimizer state of its share of the tensors.
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
