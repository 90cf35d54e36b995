"""The process group, its layout, and collectives; for a single process, they return at once.

torchrun starts the processes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). `sep_size`
neighbouring ranks share the sequences of one data-parallel rank. Rank 0 writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tuning.runs import interrupt
from tuning.runs.errors import UserError
from tuning.runs.ranks import local_rank, nodes, rank, world_size

T = TypeVar("T")


def join() -> None:
    """Initialise the process group: NCCL between GPUs, gloo between CPUs."""
    if world_size() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    # Both backends: checkpoints are written from the CPU while GPUs train.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Destroy the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def device() -> torch.device:
    """The device of this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True)
class Layout:
    """The place of this process in the layout of all processes."""

    dp_size: int
    """Data-parallel ranks: how many different micro-batches are computed at once."""
    dp_rank: int
    sep_size: int
    """Processes that share the sequences of a micro-batch."""
    sep_rank: int
    mesh: DeviceMesh | None
    """["dp", "sep"]; None for a single process."""
    everyone: DeviceMesh | None
    """All processes in one dimension; None for a single process."""

    def by_node(self) -> DeviceMesh | None:
        """["node", "local"]; all processes in one dimension where they are on one node. All ranks
        must call this."""
        if self.mesh is None or nodes() == 1:
            return self.everyone
        shape = (nodes(), self.world // nodes())
        return init_device_mesh(self.mesh.device_type, shape, mesh_dim_names=("node", "local"))

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.dp_size * self.sep_size

    @property
    def sep_group(self) -> distributed.ProcessGroup | None:
        """The processes that share this one's sequences; None with sep_size 1."""
        if self.mesh is None or self.sep_size == 1:
            return None
        return self.mesh["sep"].get_group()

    def part(self, tokens: int) -> slice:
        """This process's part of `tokens` tokens, a multiple of sep_size."""
        each = tokens // self.sep_size
        return slice(self.sep_rank * each, (self.sep_rank + 1) * each)


def layout(sep_size: int = 1) -> Layout:
    """The layout of the processes: neighbouring ranks form the groups of `sep_size`."""
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
    """All-reduce a tensor to its sum over all processes, in place."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """All-gather: the values of all ranks, in their order."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value)
    return found


def from_first(value: T | None) -> T:
    """Broadcast the value of rank 0 to all ranks."""
    if world_size() == 1:
        assert value is not None
        return value
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def wait() -> None:
    """Barrier: wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def agreed_to_stop() -> bool:
    """Whether any rank was asked to stop; all ranks must call this at the same step."""
    asked = interrupt.asked_to_stop()
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return asked
    flag = torch.tensor([int(asked)])
    if distributed.get_backend() == "nccl":
        flag = flag.cuda()
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())
