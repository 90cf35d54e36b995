"""FSDP2 under TRL, through accelerate: its settings, and what a sharded training writes and reads.

What is written is whole, and the same as without sharding: rank 0 gets the parameters and the
optimizer's state from all ranks. So a run may be resumed with another number of processes, or
another --parallel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor, distribute_tensor

from tuning import config as site
from tuning.engine.config import ComputeConfig
from tuning.runs import ranks

CONFIG = site.CHECKOUT / "configs" / "accelerate_fsdp2.yaml"
"""What `accelerate launch` takes, and --parallel fsdp2 too."""
_NAMES = {"offload_params": "cpu_offload"}
"""Names of accelerate's file that transformers has another one for."""


def arguments(compute: ComputeConfig) -> dict[str, Any]:
    """The training arguments of --parallel fsdp2 with several processes; else none. A process that
    `accelerate launch` started with such a file has them from there.
    """
    if ranks.world_size() == 1 or ranks.accelerate_shards() or compute.parallel != "fsdp2":
        return {}
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["fsdp_config"]
    given = {name.removeprefix("fsdp_"): value for name, value in settings.items()}
    return {"fsdp": True, "fsdp_config": {_NAMES.get(k, k): v for k, v in given.items()}}


def enable_on_cpu(trainer: Any) -> None:
    """Have accelerate shard on CPUs too. It takes the settings of FSDP2 there, and uses DDP without
    a word; its own code and torch's work on both.
    """
    accelerator, given = trainer.accelerator, trainer.args.fsdp_plugin_args
    asked = given is not None or ranks.accelerate_shards()
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(given or {}))
        for state in (accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True


def is_sharded(model: Any) -> bool:
    """Whether ranks hold a part of each parameter."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole_state(model: Any) -> dict[str, torch.Tensor] | None:
    """What is trained of a sharded model, by the names of its state dict, on the CPU of rank 0 and
    empty on the others; None for a model that is not sharded. Tied weights are one tensor, as they
    are in a whole model. All ranks must call this.
    """
    if not is_sharded(model):
        return None
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad or not hasattr(model, "peft_config"):
            if id(parameter) not in seen:
                whole = _whole(parameter.detach())
                seen[id(parameter)] = whole.cpu() if ranks.is_first() else whole[:0]
            if ranks.is_first():
                found[name] = seen[id(parameter)]
    return found


def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give a model, sharded or not, the weights of a whole one of the same form."""
    whole = source.state_dict()
    for name, weights in target.state_dict().items():
        weights.copy_(_like(whole[name].to(weights.dtype), weights))


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer of sharded parameters, as that of whole ones. All ranks must call
    this.
    """
    state = optimizer.state_dict()
    of_parameters = {
        number: {name: _whole(value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": of_parameters}


def load_optimizer(optimizer: Any, file: Path) -> None:
    """Read the state of an optimizer of whole parameters into one of sharded parameters."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            values[name] = _like(value, parameters[number])
    optimizer.load_state_dict(state)


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """A value that has an entry for each of a parameter's, spread as the parameter is."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    value = value.to(parameter.to_local().device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
