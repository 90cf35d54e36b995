"""Sharded checkpoints by PyTorch's distributed checkpointing, asynchronous and atomic.

A state is copied to host memory, and written while training continues. It is written to a hidden
folder, which gets its manifest and its name when all ranks have written their part; a kill at any
moment leaves the previous checkpoint. Tensors are saved by name and position in the whole tensor,
so that they can be loaded with another number of processes, or spread in another way.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard

from tuning.engine import ranks
from tuning.engine.parallel import SHARDED, Spread
from tuning.runs.atomic import read_object, sync_directory, write_json
from tuning.runs.manifest import KEPT, checkpoint_directory, is_whole, prune, write_manifest

STATE = "training_state.json"


@dataclass(kw_only=True)
class TrainingState:
    """The state of a training after `step` optimizer steps."""

    spread: Spread
    """The weights, and the optimizers with their moments."""
    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples seen so far, repeats included."""
    tokens: int = 0
    """Tokens seen so far."""
    loss_tokens: int = 0
    """Tokens with a loss seen so far."""
    seconds: float = 0.0
    """Wall time of training so far, over all restarts."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The state of hooks, which is saved and restored; JSON values."""

    @property
    def counts(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            name: getattr(self, name)
            for name in ("step", "samples", "tokens", "loss_tokens", "seconds", "extra")
        }


class Checkpoints:
    """Writes the checkpoints of a training under `directory`, one at a time, in the background."""

    def __init__(self, directory: Path, *, keep: int = KEPT) -> None:
        self.directory = directory
        self.keep = keep
        self._group = distributed.new_group(backend="gloo") if ranks.world_size() > 1 else None
        self._under_way: Future[Any] | None = None

    def save(self, state: TrainingState) -> Path:
        """Begin to write `checkpoint-{step}`, unless it exists and is whole.

        All ranks must call this. Waits for the previous one to be written.
        """
        self.wait()
        target = checkpoint_directory(self.directory, state.step)
        if ranks.from_first(is_whole(target) if ranks.rank() == 0 else None):
            return target
        temporary = self.directory / f".{target.name}.tmp"
        if ranks.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_json(temporary / STATE, state.counts)
        ranks.wait()
        written = _quietly(dcp.async_save)(
            {"state": _tensors(state.spread)},
            checkpoint_id=temporary,
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(written, Future)
        self._under_way = _after(written, lambda: self._seal(temporary, target))
        return target

    def _seal(self, temporary: Path, target: Path) -> None:
        """Publish a checkpoint; called when all ranks have written their part."""
        if ranks.rank() == 0:
            write_manifest(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
            sync_directory(target.parent)
            prune(self.directory, self.keep)

    def wait(self) -> None:
        """Wait until the checkpoint in progress is on disk; raises the error if it failed."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()
            ranks.wait()


def _quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the warning that torch.distributed is not initialised in a single process."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            return function(*args, **kwargs)

    return call


def _after(first: Future[Any], then: Any) -> Future[Any]:
    """A future of `first` followed by `then()`, on the thread that completes `first`."""
    both: Future[Any] = Future()

    def go_on(done: Future[Any]) -> None:
        try:
            done.result()
            then()
        except BaseException as error:
            both.set_exception(_cause(error))
        else:
            both.set_result(None)

    first.add_done_callback(go_on)
    return both


def _cause(error: BaseException) -> BaseException:
    """The error of the first rank that failed, which PyTorch wraps in a BaseException."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def load(state: TrainingState, checkpoint: Path) -> None:
    """Restore `state` from `checkpoint`."""
    _begin(state.spread)
    tensors = _tensors(state.spread)
    _quietly(dcp.load)(
        {"state": tensors}, checkpoint_id=checkpoint, no_dist=ranks.world_size() == 1
    )
    for _, name, key, held in _moments(state.spread):
        if not isinstance(held[key], torch.Tensor):
            held[key] = tensors[f"optimizer.{name}.{key}"]
    for name, value in (read_object(checkpoint / STATE) or {}).items():
        setattr(state, name, value)


@torch.no_grad()
def _begin(spread: Spread) -> None:
    """Allocate the state of the optimizers, by a step with learning rate and gradients of zero."""
    for optimizer in _inner(spread):
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _inner(spread: Spread) -> list[torch.optim.Optimizer]:
    """The optimizers that hold this rank's state, without ZeroRedundancyOptimizer around them."""
    return [o.optim if isinstance(o, ZeroRedundancyOptimizer) else o for o in spread.optimizers]


def _moments(spread: Spread) -> Iterator[tuple[torch.Tensor, str, str, dict[str, Any]]]:
    """(parameter, its name, a key, the state dictionary) of all optimizer state on this rank."""
    for optimizer in _inner(spread):
        for name, p in spread.trained():
            held = optimizer.state.get(p, {})
            for key in sorted(held):
                yield p, name, key, held


def _tensors(spread: Spread) -> dict[str, Any]:
    """Weights and moments by name; tensors of which a rank has a part as DTensors."""

    def placed(name: str, tensor: Any) -> Any:
        if name in spread.experts and spread.kind not in SHARDED and tensor.dim() > 0:
            assert spread.layout.mesh is not None
            return DTensor.from_local(
                tensor, spread.layout.mesh["sep"], [Shard(0)], run_check=False
            )
        return tensor

    found = {
        f"model.{name}": placed(name, p.detach()) for name, p in spread.module.named_parameters()
    }
    for _, name, key, held in _moments(spread):
        found[f"optimizer.{name}.{key}"] = placed(name, held[key])
    return found
