"""The processes that train one model together, and how they are laid out; alone, everything here
is free.

torchrun starts them (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). `sep_size` neighbours
share the sequences of one data-parallel rank. The first process writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tuning.runs import interrupt
from tuning.runs.errors import UserError
from tuning.runs.ranks import local_rank, rank, world_size

T = TypeVar("T")


def join() -> None:
    """Initialise the process group: NCCL between GPUs, gloo between CPUs."""
    if world_size() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    # Checkpoints are written by way of the CPU, beside the training between GPUs.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Destroy the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def device() -> torch.device:
    """Where this process computes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True)
class Layout:
    """Which part of the work is this process's."""

    dp_size: int
    """Data-parallel ranks: how many sets of sequences are worked on at once."""
    dp_rank: int
    sep_size: int
    """Processes that share one set of sequences."""
    sep_rank: int
    mesh: DeviceMesh | None
    """["dp", "sep"]; None where one process is alone."""
    everyone: DeviceMesh | None
    """All processes in one dimension."""

    @property
    def world(self) -> int:
        """All processes."""
        return self.dp_size * self.sep_size

    @property
    def sep_group(self) -> distributed.ProcessGroup | None:
        """The processes that share this one's sequences; None where it has them alone."""
        if self.mesh is None or self.sep_size == 1:
            return None
        return self.mesh["sep"].get_group()

    def part(self, tokens: int) -> slice:
        """This process's part of a row of `tokens`, a multiple of sep_size."""
        each = tokens // self.sep_size
        return slice(self.sep_rank * each, (self.sep_rank + 1) * each)


def layout(sep_size: int = 1) -> Layout:
    """How the processes that have met are laid out: neighbours form the groups of `sep_size`."""
    world, number = world_size(), rank()
    if world % sep_size:
        raise UserError(
            f"sep_size {sep_size} does not divide the {world} processes; start a multiple of "
            f"{sep_size} or lower --sep_size"
        )
    mesh = everyone = None
    if world > 1:
        shape = (world // sep_size, sep_size)
        mesh = init_device_mesh(device().type, shape, mesh_dim_names=("dp", "sep"))
        everyone = mesh["dp", "sep"]._flatten("all")
    return Layout(
        dp_size=world // sep_size,
        dp_rank=number // sep_size,
        sep_size=sep_size,
        sep_rank=number % sep_size,
        mesh=mesh,
        everyone=everyone,
    )


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


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


def agreed_to_stop() -> bool:
    """`interrupt.asked_to_stop()` of any rank; all must call it at the same step."""
    asked = interrupt.asked_to_stop()
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return asked
    flag = torch.tensor([int(asked)])
    if distributed.get_backend() == "nccl":
        flag = flag.cuda()
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())
