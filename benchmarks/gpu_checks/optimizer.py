"""The optimizers that trainings get on this device, and whether they step."""

from __future__ import annotations

import math
import tempfile
import time
from typing import Any

import torch

from benchmarks.gpu_checks.rows import FAILED, OK
from benchmarks.gpu_checks.site import Context

WIDTH, STEPS, RATE = 256, 5, 1e-3
"""bitsandbytes keeps moments of fewer than 4,096 elements in 32 bits."""


def run(context: Context) -> None:
    """What `auto` is with TRL, and what the engine takes."""
    from tuning.engine import loop
    from tuning.engine.config import LoopConfig
    from tuning.training.config import optimizer_name

    cuda = context.device == "cuda"
    name = optimizer_name("auto", cuda=cuda)
    _row(context, f"TRL, auto: {name}", lambda parameters: _of_trainer(name, parameters))
    config = LoopConfig(max_lr=RATE, weight_decay=0.0)
    _row(
        context,
        "the engine",
        lambda parameters: loop.adamw(config)([{"params": parameters, "weight_decay": 0.0}]),
    )


def _of_trainer(name: str, parameters: list[Any]) -> Any:
    """The optimizer of transformers by its name."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, optim=name, learning_rate=RATE, report_to=[],
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    return kind(parameters, **settings)


def _row(context: Context, what: str, make: Any) -> None:
    """Some steps on a matrix; each entry moves by about the learning rate a step."""
    began = time.monotonic()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(WIDTH, WIDTH, generator=generator)
    matrix = torch.nn.Parameter(start.clone().to(context.device))
    optimizer = make([matrix])
    for _ in range(STEPS):
        (matrix - 100).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = (matrix.detach().cpu() - start).mean().item()
    state = optimizer.state[matrix]
    kinds = sorted({str(x.dtype).removeprefix("torch.") for x in state.values() if _moments(x)})
    fused = bool(optimizer.param_groups[0].get("fused"))
    fine = math.isclose(moved, STEPS * RATE, rel_tol=0.2)
    context.say(
        what,
        OK if fine else FAILED,
        f"{type(optimizer).__module__.partition('.')[0]} {type(optimizer).__name__}, moments in "
        f"{', '.join(kinds)}{', fused' if fused else ''}; moved {moved:.2e} in {STEPS} steps of "
        f"{RATE:.0e}",
        time.monotonic() - began,
        optimizer=type(optimizer).__name__,
        moments=kinds,
        fused=fused,
        moved=moved,
    )


def _moments(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == WIDTH * WIDTH
