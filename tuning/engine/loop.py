"""The training loop, read from top to bottom: a paragraph for each part of a step.

It resumes from the newest whole checkpoint in its directory, and the result is equal, bit for bit,
to that of an uninterrupted run: the batch, the learning rate and the random numbers are functions
of the step, and all else that a step depends on is in the checkpoint. The number of processes, the
micro-batch and the packing change nothing but rounding.

Extension points are plain arguments: the model, the samples, a loss function, an optimizer factory,
and hooks that are called after a step.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tuning.engine import checkpoint, parallel, ranks, sep
from tuning.engine import flops as flops_of
from tuning.engine.batches import Batches, Row
from tuning.engine.checkpoint import Checkpoints, TrainingState
from tuning.engine.config import LoopConfig
from tuning.engine.flops import Flops
from tuning.engine.losses import LossFunction, cross_entropy
from tuning.engine.parallel import SHARDED, OptimizerFactory, Spread
from tuning.runs.errors import Interrupted
from tuning.runs.manifest import KEPT, newest_whole
from tuning.weights.config import in_half

Metrics = dict[str, Any]
AfterStep = Callable[[TrainingState], bool]
"""Called after a step, on all ranks; True ends the training."""


def train(
    spread: Spread,
    batches: Batches,
    config: LoopConfig,
    *,
    steps: int | None,
    directory: Path | None,
    save_every: int | None = None,
    keep: int = KEPT,
    loss_function: LossFunction = cross_entropy,
    optimizer: OptimizerFactory | None = None,
    flops: Flops | None = None,
    peak_flops: float | None = None,
    on_step: Callable[[Metrics], None] | None = None,
    after_step: AfterStep | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingState:
    """Train a model in place for `steps` optimizer steps and return its state.

    Args:
        spread: The model on this process, from `parallel.spread()`.
        batches: The samples of each step.
        config: Schedule, optimizer, precision, seed.
        steps: Optimizer steps in total; None trains until a hook or a signal ends it.
        directory: Where checkpoints are written, and resumed from; None: no checkpoints, for
            trials of a few steps.
        save_every: A checkpoint every so many steps and after the last one; None: only when
            `should_stop` ends the training.
        keep: How many checkpoints are kept.
        loss_function: See losses.py.
        optimizer: From parameter groups to an optimizer; None: AdamW of the config.
        flops: Cost of a token, for the MFU.
        peak_flops: Of one device, FLOP/s; None if unknown.
        on_step: Called with the metrics of each step.
        after_step: Called with the state after each step, and once before the first one.
        should_stop: Asked before each step; if true, a checkpoint is written and training ends.
            All ranks must get the same answer.

    Raises:
        Interrupted: `should_stop` returned True; the same call resumes.
    """
    parallel.add_optimizers(spread, optimizer or adamw(config), config.weight_decay)
    state = TrainingState(spread=spread)
    checkpoints = Checkpoints(directory, keep=keep) if directory else None
    if directory and (found := ranks.from_first(str(newest_whole(directory) or ""))):
        checkpoint.load(state, Path(found))
    device = next(spread.module.parameters()).device
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    spread.model.train()
    ended = after_step(state) if after_step and state.step == 0 else False

    while not ended and (steps is None or state.step < steps):
        if should_stop():
            if state.step == 0:
                raise Interrupted("stopped before the first step")
            if checkpoints is None:
                raise Interrupted(f"stopped after step {state.step}; nothing is saved")
            saved = checkpoints.save(state)
            checkpoints.wait()
            raise Interrupted(f"stopped after step {state.step}; saved {saved.name}")
        started = time.perf_counter()

        # The batch, the learning rate and the random numbers depend on the step alone.
        batch = batches.at(state.step)
        rate = learning_rate(state.step, config, steps)
        seed_with(seed_of(config.seed, state.step, ranks.rank()), device)

        # Gradients of the mean over all loss tokens of the batch, however it is split and shared.
        losses.zero_()
        rows = batches.rows(batch, device)
        for number, row in enumerate(rows):
            with spread.accumulating(last=number == len(rows) - 1):
                loss, balance = losses_of(spread, row, config.precision, loss_function)
                loss = loss / max(batch.loss_tokens, 1)
                losses[0] += loss.detach()
                if balance is not None:
                    balance = balance * (row.tokens / batch.tokens)
                    losses[1] += balance.detach()
                    loss = loss + config.router_aux_loss_coef * balance
                spread.backward(loss)

        # One step of the optimizer.
        norm = spread.clip(config.grad_clip_value)
        spread.step(rate)

        # The record of the step, and a checkpoint.
        ranks.total(losses)
        loss_value, balance_value = losses.tolist()
        seconds = time.perf_counter() - started
        state.step += 1
        state.samples += batch.samples
        state.tokens += batch.tokens
        state.loss_tokens += batch.loss_tokens
        state.seconds += seconds
        if on_step:
            on_step(
                {
                    "step": state.step,
                    "epoch": round(batch.epoch, 4),
                    "loss": loss_value,
                    **({"router_aux_loss": balance_value} if spread.routed else {}),
                    "lr": rate,
                    "grad_norm": norm.item(),
                    "tokens": state.tokens,
                    "samples": state.samples,
                    "loss_tokens": batch.loss_tokens,
                    "step_seconds": seconds,
                    "tokens_per_second": batch.tokens / seconds,
                    "samples_per_second": batch.samples / seconds,
                    "fill": round(batch.fill, 4),
                    "balance": round(batch.balance, 4),
                    "mfu": mfu(batch, flops, peak_flops, seconds),
                    "peak_memory_gb": peak_memory(device),
                    "seconds": state.seconds,
                }
            )
        ended = after_step(state) if after_step else False
        if checkpoints and save_every and (state.step % save_every == 0 or state.step == steps):
            checkpoints.save(state)

    if checkpoints:
        checkpoints.wait()
    return state


def losses_of(
    spread: Spread, row: Row, precision: str, loss_function: LossFunction
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """This process's parts of (the loss summed over tokens, the load-balancing loss of the experts
    or None for a dense model).

    Logits are computed only at tokens with a loss.
    """
    with autocast(spread, precision, row.input_ids.device):
        out = spread.model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            use_cache=False,
            documents=row.documents,
            logits_to_keep=row.kept,
            **({"output_router_logits": True} if spread.routed else {}),
        )
    logits = out.logits[0].float()
    loss = loss_function(logits, row.targets).sum()
    if not spread.routed:
        return loss, None
    group, part = spread.layout.sep_group, row.input_ids.shape[1]
    start = spread.layout.sep_rank * part
    top_k = spread.config.num_experts_per_tok
    return loss, sep.balance_loss(out.router_logits, top_k, group, row.tokens, start)


def autocast(
    spread: Spread, precision: str, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """bf16 computation over float32 weights; FSDP2 casts by its own mixed-precision policy."""
    half = in_half(precision, cuda=device.type == "cuda")
    if not half or spread.kind in SHARDED:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def peak_flops(spread: Spread, precision: str) -> float | None:
    """FLOP/s of this process's device in the precision of a training; None, with a warning from
    rank 0, if the device is unknown.
    """
    device = ranks.device()
    weights = next(spread.module.parameters()).dtype
    half = in_half(precision, cuda=device.type == "cuda") or weights == torch.bfloat16
    found = flops_of.peak(device, torch.bfloat16 if half else torch.float32)
    if found is None and ranks.rank() == 0:
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"
        print(f"warning: the peak FLOP/s of {what} are not known; mfu is null", file=sys.stderr)
    return found


def learning_rate(step: int, config: LoopConfig, steps: int | None) -> float:
    """Of step `step`, counted from 0: linear warmup, then down to min_lr at the last step."""
    if step < config.warmup_steps:
        return config.max_lr * ((step + 1) / config.warmup_steps)
    if config.lr_scheduler == "constant" or steps is None:
        return config.max_lr
    last = max(steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / last, 1.0)
    height = config.max_lr - config.last_lr
    left = (
        (1 + math.cos(math.pi * progress)) / 2 if config.lr_scheduler == "cosine" else 1 - progress
    )
    return config.last_lr + height * left


def adamw(config: LoopConfig) -> OptimizerFactory:
    """AdamW (Loshchilov and Hutter 2019), in one kernel on CUDA."""

    def make(groups: parallel.ParamGroups) -> torch.optim.Optimizer:
        on_gpu = all(p.is_cuda for group in groups for p in group["params"])
        return torch.optim.AdamW(
            groups,
            lr=config.max_lr,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=on_gpu or None,
        )

    return make


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers (of dropout) of a step on a process."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_with(seed: int, device: torch.device) -> None:
    """Seed the generators that a model draws from. `torch.manual_seed` probes every kind of device,
    which takes longer than everything else in a step that is not the model's work.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def mfu(batch: Any, flops: Flops | None, peak: float | None, seconds: float) -> float | None:
    """Model FLOPs utilization: FLOP/s that the model needs over the peak of all devices."""
    if flops is None or peak is None:
        return None
    needed = flops.training(batch.tokens, batch.squares, batch.loss_tokens)
    return round(needed / seconds / (peak * ranks.world_size()), 4)


def peak_memory(device: torch.device) -> float:
    """The most memory so far in GiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_reserved(device) / 2**30, 3)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
