"""Sequence and expert parallelism over one group of processes (SEP), on stock model classes.

Each process has a part of the tokens of a sequence. For attention, an all-to-all gives it a part
of the heads for all tokens instead (DeepSpeed-Ulysses, Jacobs et al. 2023), and another one turns
it back. In a mixture of experts each process has a part of the experts, and the tokens travel to
them and back. Modules know their group by an attribute, which `join()` sets.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

Group = distributed.ProcessGroup
EXPERTS = "sep_experts"
"""The name under which transformers knows `shared_experts`."""
_GROUP = "_sep_group"


class _AllToAll(torch.autograd.Function):
    """Rows of `x` to the processes of a group, by splits of the first dimension."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, into: list[int], out_of: list[int], group: Group
    ) -> torch.Tensor:
        """`out_of[i]` rows go to process i, `into[i]` come from it."""
        ctx.splits, ctx.group = (into, out_of), group
        received = x.new_empty((sum(into), *x.shape[1:]))
        distributed.all_to_all_single(received, x.contiguous(), into, out_of, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        into, out_of = ctx.splits
        sent = grads[0].new_empty((sum(out_of), *grads[0].shape[1:]))
        distributed.all_to_all_single(sent, grads[0].contiguous(), out_of, into, group=ctx.group)
        return sent, None, None, None


def exchange(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Part i of the first dimension goes to process i; all parts have the same size."""
    size = distributed.get_world_size(group)
    splits = [x.shape[0] // size] * size
    found: torch.Tensor = _AllToAll.apply(x, splits, splits, group)
    return found


def to_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Group
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[batch, heads, tokens / P, width] each as [batch, heads / P, tokens, width].

    Keys and values are repeated where there are fewer heads of them than processes.
    """
    size = distributed.get_world_size(group)
    if k.shape[1] % size:
        times = size // math.gcd(k.shape[1], size)
        k, v = (x.repeat_interleave(times, 1) for x in (k, v))
    return _gather_tokens(q, group), _gather_tokens(k, group), _gather_tokens(v, group)


def _gather_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    size = distributed.get_world_size(group)
    batch, heads, tokens, width = x.shape
    parts = x.reshape(batch, size, heads // size, tokens, width).transpose(0, 1)
    met = exchange(parts, group)
    return met.permute(1, 2, 0, 3, 4).reshape(batch, heads // size, size * tokens, width)


def to_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """[batch, heads / P, tokens, width] as [batch, heads, tokens / P, width]."""
    size = distributed.get_world_size(group)
    batch, heads, tokens, width = x.shape
    parts = x.reshape(batch, heads, size, tokens // size, width).permute(2, 0, 1, 3, 4)
    met = exchange(parts, group)
    return met.transpose(0, 1).reshape(batch, heads * size, tokens // size, width)


def group_of(module: torch.nn.Module) -> Group | None:
    """The processes that share the tokens of a module; None if it has all of them."""
    return getattr(module, _GROUP, None)


def expert_modules(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The modules that hold the fused weights of many experts, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module._parameters.get("gate_up_proj"), torch.nn.Parameter)
        and module._parameters["gate_up_proj"].dim() == 3
    ]


def join(model: torch.nn.Module, group: Group) -> None:
    """Set the group of processes that share tokens on every module of `model`."""
    for module in model.modules():
        setattr(module, _GROUP, group)


def shared_experts(
    module: Any, hidden: torch.Tensor, expert_of: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The experts of a layer, split over the group, behind the interface of transformers.

    Args:
        module: Holds gate_up_proj and down_proj of this process's experts.
        hidden: [tokens, width] of this process.
        expert_of: [tokens, k] the experts chosen for each token, by their numbers over all.
        weight: [tokens, k] how much each counts.
    """
    group = group_of(module)
    inner = _inner()
    if group is None:
        found: torch.Tensor = inner(module, hidden, expert_of, weight)
        return found
    here = module.num_experts // distributed.get_world_size(group)
    flat = expert_of.reshape(-1)
    order = flat.argsort(stable=True)
    into, out_of, local = _routes(flat[order], here, group)
    sent = _AllToAll.apply(hidden[order // expert_of.shape[1]], into, out_of, group)
    with _as_local(module, here):
        done = inner(
            module, sent, local[:, None], torch.ones_like(local[:, None], dtype=sent.dtype)
        )
    back = _AllToAll.apply(done, out_of, into, group)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    each = back[inverse].view(*expert_of.shape, hidden.shape[1])
    return (each * weight[..., None]).sum(1).to(hidden.dtype)


@torch.no_grad()
def _routes(
    chosen: torch.Tensor, here: int, group: Group
) -> tuple[list[int], list[int], torch.Tensor]:
    """How many rows come from and go to each process, and the local expert of each that comes.

    `chosen`: the experts of the rows that this process sends, rising.
    """
    size = distributed.get_world_size(group)
    sending = torch.bincount(chosen // here, minlength=size)
    receiving = torch.empty_like(sending)
    distributed.all_to_all_single(receiving, sending, group=group)
    out_of, into = sending.tolist(), receiving.tolist()
    experts = chosen.new_empty(sum(into))
    distributed.all_to_all_single(experts, chosen, into, out_of, group=group)
    return into, out_of, experts - distributed.get_rank(group) * here


def _inner() -> Any:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    return ALL_EXPERTS_FUNCTIONS["grouped_mm"]


@contextlib.contextmanager
def _as_local(module: Any, experts: int) -> Iterator[None]:
    """The module with `experts` experts and plain tensors for weights, as kernels need them."""
    kept, count = dict(module._parameters), module.num_experts
    module._parameters.update(
        {name: p.to_local() for name, p in kept.items() if isinstance(p, DTensor)}
    )
    module.num_experts = experts
    try:
        yield
    finally:
        module._parameters.update(kept)
        module.num_experts = count


def balance_loss(
    router_logits: tuple[torch.Tensor, ...], top_k: int, group: Group | None, real: int, start: int
) -> torch.Tensor:
    """This process's share of the loss that balances experts over a micro-batch; shares add up.

    E * sum over experts of (share of the choices) * (mean probability), over all layers at once
    (Fedus et al. 2021, eq. 4 to 6, as transformers takes it). The counts are summed over the
    group, and the probabilities are linear, so that the shares sum to the loss of the whole.

    Args:
        router_logits: [tokens of this process, experts] of every layer.
        top_k: Experts a token.
        group: The processes that share the micro-batch.
        real: Its tokens over the group without the fill.
        start: The place of this process's first token in the micro-batch.
    """
    here = max(0, min(real - start, router_logits[0].shape[0]))
    logits = torch.cat([layer[:here] for layer in router_logits])
    probability = logits.softmax(-1, dtype=torch.float32)
    experts = logits.shape[-1]
    chosen = probability.topk(top_k, -1).indices.reshape(-1)
    counts = torch.bincount(chosen, minlength=experts).float()
    if group is not None:
        distributed.all_reduce(counts, group=group)
    total = max(real, 1) * len(router_logits)
    return experts * ((counts / total) * (probability.sum(0) / total)).sum()


def register() -> None:
    """Register `shared_experts` with transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, shared_experts)
