"""Training states on disk, in shards, by PyTorch's distributed checkpoints: whole or not there.

A state is copied to host memory at once and written beside the training. It lies in a hidden folder
until everyone's part is on disk, then gets its manifest and its name; a kill at any moment leaves
the one before. Tensors are saved by their names and places in the whole, so that another number of
processes, or another way of spreading, reads them too.
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
from tuning.engine.parallel import Spread
from tuning.runs.atomic import read_json, sync_directory, write_json
from tuning.runs.manifest import checkpoint_directory, is_whole, prune, write_manifest

STATE = "training_state.json"


@dataclass(kw_only=True)
class TrainingState:
    """Where a training stands after `step` optimizer steps."""

    spread: Spread
    """The weights and the optimizers with their moments."""
    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples seen so far, repeats included: the place in the data."""
    tokens: int = 0
    """Tokens seen so far."""
    loss_tokens: int = 0
    """Tokens with a loss seen so far."""
    seconds: float = 0.0
    """Wall time spent in training, over all the attempts that led here."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What hooks want back after a resume; JSON values."""

    @property
    def counts(self) -> dict[str, Any]:
        """All but the tensors."""
        return {
            name: getattr(self, name)
            for name in ("step", "samples", "tokens", "loss_tokens", "seconds", "extra")
        }


class Checkpoints:
    """Writes the states of one training under `directory`, one at a time, beside the training."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep
        self._group = distributed.new_group(backend="gloo") if ranks.world_size() > 1 else None
        self._under_way: Future[Any] | None = None

    def save(self, state: TrainingState) -> Path:
        """Begin to write `checkpoint-{step}`; one that is whole is left as it is.

        All processes must call this. The one before is waited for.
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
            {"state": _tensors(state.spread)}, checkpoint_id=temporary,
            process_group=self._group, no_dist=self._group is None,
        )  # fmt: skip
        assert isinstance(written, Future)
        self._under_way = _after(written, lambda: self._seal(temporary, target))
        return target

    def _seal(self, temporary: Path, target: Path) -> None:
        """Everyone's part is on disk when the first process's call has come back."""
        if ranks.rank() == 0:
            write_manifest(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
            sync_directory(target.parent)
            prune(self.directory, self.keep)

    def wait(self) -> None:
        """Come back when what was begun is on disk; raises what went wrong with it."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()
            ranks.wait()


def _quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the warning that one process is one process."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            return function(*args, **kwargs)

    return call


def _after(first: Future[Any], then: Any) -> Future[Any]:
    """`then()` on the thread that ends `first`; the future of both."""
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
    """What went wrong on the first process that failed; PyTorch wraps it in a BaseException."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def load(state: TrainingState, checkpoint: Path) -> None:
    """Put `state` back to where `checkpoint` was written."""
    _begin(state.spread)
    tensors = _tensors(state.spread)
    _quietly(dcp.load)(
        {"state": tensors}, checkpoint_id=checkpoint, no_dist=ranks.world_size() == 1
    )
    for _, name, key, held in _moments(state.spread):
        if not isinstance(held[key], torch.Tensor):
            held[key] = tensors[f"optimizer.{name}.{key}"]
    for name, value in (read_json(checkpoint / STATE) or {}).items():
        setattr(state, name, value)


@torch.no_grad()
def _begin(spread: Spread) -> None:
    """Give optimizers their state, by a step that changes nothing."""
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
    """The optimizers whose state is this process's own."""
    return [o.optim if isinstance(o, ZeroRedundancyOptimizer) else o for o in spread.optimizers]


def _moments(spread: Spread) -> Iterator[tuple[torch.Tensor, str, str, dict[str, Any]]]:
    """(parameter, its name, a key, the dictionary that has it) of all optimizer state here."""
    for optimizer in _inner(spread):
        for name, p in spread.trained():
            held = optimizer.state.get(p, {})
            for key in sorted(held):
                yield p, name, key, held


def _tensors(spread: Spread) -> dict[str, Any]:
    """Weights and moments by name, those that a process has a part of with their place."""

    def placed(name: str, tensor: Any) -> Any:
        if name in spread.experts and spread.kind != "fsdp2" and tensor.dim() > 0:
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
