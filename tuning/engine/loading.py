"""Loading a model on all ranks: rank 0 reads it, the others build it on the meta device, and the
weights are broadcast tensor by tensor to the devices that compute.

So a machine holds one copy of the weights in host memory, however many processes it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn

from tuning.engine import ranks


def build_lazily(read: Callable[[], nn.Module], skeleton: Callable[[], nn.Module]) -> nn.Module:
    """`read()` on rank 0; on the other ranks `skeleton()`, of the same structure, on the meta
    device.
    """
    if ranks.rank() == 0:
        return read()
    with torch.device("meta"):
        return skeleton()


@torch.no_grad()
def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give every parameter and buffer of `module` the values of rank 0, on `device`. All ranks must
    call this.

    Tensors that several modules share stay shared. Those that are materialized or sharded already
    are skipped.
    """
    seen: dict[int, Any] = {}
    for _, owner in sorted(module.named_modules(remove_duplicate=True)):
        for name, p in owner._parameters.items():
            if p is None or _in_place(p):
                continue
            if id(p) not in seen:
                made = nn.Parameter(_received(p, device), requires_grad=p.requires_grad)
                made._tuning_in_place = True  # type: ignore[attr-defined]
                seen[id(p)] = (p, made)
            owner._parameters[name] = seen[id(p)][1]
        for name, b in owner._buffers.items():
            if b is not None and not _in_place(b):
                sent = _received(b, device)
                sent._tuning_in_place = True  # type: ignore[attr-defined]
                owner._buffers[name] = sent


def _in_place(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor) or getattr(tensor, "_tuning_in_place", False)


def _received(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The values of a tensor on rank 0, on this rank's device."""
    values = torch.empty_like(tensor, device=device)
    if ranks.rank() == 0:
        values.copy_(tensor)
    distributed.broadcast(values, 0)
    return values
