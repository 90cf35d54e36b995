"""From shards to a Hugging Face model directory: whole weights are gathered on rank 0, tensor by
tensor, with the experts of all ranks and with OSFT merged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from tuning.engine import osft, ranks
from tuning.engine.parallel import Spread
from tuning.runs.atomic import whole_directory


@torch.no_grad()
def whole_weights(spread: Spread, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The whole weights by their names in the plain model, in host memory of rank 0; {} elsewhere.
    All ranks must call this.
    """
    found: dict[str, torch.Tensor] = {}
    modules = osft.osft_modules(spread.module)
    pending: dict[str, dict[str, torch.Tensor]] = {path: {} for path in modules}
    for name, p in spread.module.named_parameters():
        whole = _whole(spread, name, p)
        if ranks.rank() != 0:
            continue
        path, _, leaf = name.rpartition(".")
        owner = path.removesuffix(".base")
        if owner not in pending or leaf == "bias":
            found[osft.plain_name(name) or name] = whole.to("cpu", dtype)
            continue
        parts = pending[owner]
        parts["base_weight" if path.endswith(".base") else leaf] = whole.float().cpu()
        if len(parts) == 4:
            merged = osft.merge(parts["base_weight"], parts["Qu"], parts["M"], parts["Qv"])
            found[f"{owner}.weight"] = merged.to(dtype or p.dtype)
            parts.clear()
    return found


def _whole(spread: Spread, name: str, p: torch.Tensor) -> torch.Tensor:
    if isinstance(p, DTensor):
        return p.full_tensor()
    if name in spread.experts:
        parts = [torch.empty_like(p) for _ in range(spread.layout.sep_size)]
        distributed.all_gather(parts, p.detach().contiguous(), group=spread.layout.sep_group)
        return torch.cat(parts)
    return p.detach().clone() if p.device.type == "cpu" else p.detach()


def write_model(
    spread: Spread, folder: Path, dtype: torch.dtype | None = None, tokenizer: Any = None
) -> None:
    """Write a directory that `AutoModelForCausalLM.from_pretrained` reads, on rank 0.

    `dtype`: of the weights; None: as they are. All ranks must call this.
    """
    weights = whole_weights(spread, dtype)
    if ranks.rank() == 0:
        from transformers.utils import logging

        model = spread.module
        with torch.device("meta"):
            plain = _plain_class(model)(model.config)
        plain.generation_config = model.generation_config
        tied = {n for n in plain.state_dict() if n not in weights}
        head = plain.get_input_embeddings().weight
        for name in tied:
            source = next(n for n, p in plain.named_parameters() if p is head)
            weights[name] = weights[source]
        logging.disable_progress_bar()
        plain.to(dtype or next(iter(weights.values())).dtype)
        plain.save_pretrained(folder, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    ranks.wait()


def save_model(
    spread: Spread, target: Path, dtype: torch.dtype | None = None, tokenizer: Any = None
) -> None:
    """`write_model()` into `target`, atomically. All ranks must call this."""
    if ranks.rank() == 0:
        with whole_directory(target) as folder:
            write_model(spread, folder, dtype, tokenizer)
    else:
        write_model(spread, target, dtype, tokenizer)
    ranks.wait()


def _plain_class(model: torch.nn.Module) -> Any:
    """The model class of transformers, from which fully_shard derives its own."""
    from torch.distributed.fsdp import FSDPModule

    cls = type(model)
    return cls.__mro__[2] if issubclass(cls, FSDPModule) else cls
