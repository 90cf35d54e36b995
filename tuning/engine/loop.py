"""The training loop, read from top to bottom: a paragraph for each part of a step.

It resumes by itself from the newest whole checkpoint in its directory, and the result is equal, bit
for bit, to that of a run that was never disturbed: the batch and the learning rate are functions of
the step, and all else that a step depends on is in the checkpoint. Under torchrun the micro-batches
of a step are shared out among the processes, and the result differs by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from tuning.engine import checkpoint, ranks
from tuning.engine.batches import IGNORED, Batch
from tuning.engine.checkpoint import TrainingState
from tuning.engine.config import PretrainConfig
from tuning.runs.errors import Interrupted
from tuning.runs.manifest import newest_whole


class BatchSource(Protocol):
    """Anything that knows the batch of every step."""

    def at(self, step: int) -> Batch:
        """The whole batch of optimizer step `step`, counted from 0."""


def train(
    model: torch.nn.Module,
    batches: BatchSource,
    config: PretrainConfig,
    *,
    directory: Path,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingState:
    """Train `model` in place for `config.total_steps` and return where it stands.

    Args:
        model: A causal language model that stays on its device; called as model(input_ids=...).
        batches: Where each step's batch comes from.
        config: Optimizer, schedule, precision, when to save.
        directory: Where checkpoints are written, and looked for.
        on_step: Gets step (counted from 1), loss (nats a token), lr, grad_norm (before clipping),
            tokens (so far), tokens_per_second (of this step) and seconds (so far) after each step.
        should_stop: Asked before each step; where it says yes, a checkpoint is written. All
            processes must get the same answer.

    Raises:
        Interrupted: `should_stop` said yes; the same call continues.
    """
    torch.manual_seed(config.seed + ranks.rank())
    state = TrainingState(model=model, optimizer=_adamw(model, config))
    if found := ranks.from_first(str(newest_whole(directory) or "")):
        checkpoint.load(state, Path(found))
    device = next(model.parameters()).device
    model.train()

    while state.step < config.total_steps:
        if should_stop():
            saved = checkpoint.save(state, directory)
            raise Interrupted(f"stopped after step {state.step}; saved {saved.name}")
        started = time.perf_counter()

        # The learning rate depends on the step alone.
        rate = learning_rate(state.step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate

        # Gradients of the mean over all loss tokens of the batch, however it is split and shared.
        batch = batches.at(state.step)
        loss_tokens = int((batch.labels != IGNORED).sum())
        loss = 0.0
        for part in ranks.mine(_micro_batches(batch, config.micro_batch_size)):
            share = _summed_loss(model, part, device, config.precision) / loss_tokens
            share.backward()
            loss += share.item()
        ranks.add_gradients(model.parameters())
        loss = ranks.total(loss)

        # One step of the optimizer.
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()

        # What has been done, for the reader and for the disk.
        seconds = time.perf_counter() - started
        state.step += 1
        state.tokens += loss_tokens
        state.seconds += seconds
        if on_step:
            on_step(
                {
                    "step": state.step,
                    "loss": loss,
                    "lr": rate,
                    "grad_norm": grad_norm.item(),
                    "tokens": state.tokens,
                    "tokens_per_second": loss_tokens / seconds,
                    "seconds": state.seconds,
                }
            )
        if state.step % config.save_steps == 0 or state.step == config.total_steps:
            checkpoint.save(state, directory)

    return state


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warmup, then a cosine that ends at min_learning_rate with the last step (from 0)."""
    if step < config.warmup_steps:
        return config.learning_rate * ((step + 1) / config.warmup_steps)
    last = max(config.total_steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / last, 1.0)
    height = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + height * (1 + math.cos(math.pi * progress)) / 2


def _adamw(model: torch.nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only (Loshchilov and Hutter 2019; GPT-3, appendix B)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
    )


def _micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    size = size or -(-len(batch.input_ids) // ranks.world_size())
    parts = zip(batch.input_ids.split(size), batch.labels.split(size), strict=True)
    return (Batch(input_ids, labels) for input_ids, labels in parts)


def _summed_loss(
    model: torch.nn.Module, batch: Batch, device: torch.device, precision: str
) -> torch.Tensor:
    """Cross-entropy summed over the tokens with a loss, in nats; a scalar in fp32."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = model(input_ids=batch.input_ids.to(device), use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        batch.labels.to(device).flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
