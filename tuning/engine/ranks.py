"""The processes that train one model together, data-parallel; alone, everything here is free.

torchrun starts them (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Every one has the
whole model and the whole batch, works on its share of the micro-batches, and adds its gradients to
those of the others; the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def join() -> None:
    """Meet the others: NCCL between GPUs, gloo between CPUs."""
    if world_size() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Part from the others."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def mine(parts: Iterable[T]) -> list[T]:
    """This process's share of the micro-batches of a step; it may be none."""
    return list(parts)[rank() :: world_size()]


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; a process without a share adds zero."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)


def total(value: float) -> float:
    """The sum of a number over all processes."""
    if world_size() == 1:
        return value
    device = "cuda" if torch.cuda.is_available() else "cpu"
    added = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.all_reduce(added)
    return float(added.item())


def gather(value: T) -> list[T]:
    """The values of all processes, in their order, for each of them."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value)
    return found


def from_first(value: T | None) -> T:
    """What the first process has, for all of them."""
    if world_size() == 1:
        assert value is not None
        return value
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def wait() -> None:
    """Go on when all are here."""
    if world_size() > 1:
        distributed.barrier()
