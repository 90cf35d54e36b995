"""From settings to what the loop takes: a model in place on all ranks, and the batches of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tuning.engine import attention, flops, liger, loading, osft, parallel, ranks
from tuning.engine.batches import Batches
from tuning.engine.config import ComputeConfig, OSFTConfig
from tuning.engine.parallel import Spread
from tuning.engine.ranks import Layout
from tuning.engine.samples import Samples
from tuning.runs.errors import UserError
from tuning.weights.config import in_half

Build = Callable[[torch.dtype], Any]
"""From the dtype of the weights to a model."""
DENSE = OSFTConfig()
"""Without OSFT."""


def open_model(
    read: Build,
    skeleton: Build,
    layout: Layout,
    compute: ComputeConfig,
    *,
    osft_config: OSFTConfig = DENSE,
    precision: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> tuple[Spread, flops.Flops]:
    """A model in place on all ranks, and the cost of a token.

    Args:
        read: The model with its weights; called on rank 0 only.
        skeleton: The same structure; called on the other ranks, on the meta device.
        layout: From `ranks.layout()`.
        compute: How the model is spread and computed.
        osft_config: Whether the model trains in orthogonal subspaces.
        precision: Of the computation: auto, fp32 or bf16.
        dtype: Of the weights while training.
    """
    liger.check(compute.use_liger_kernels)
    sharded = compute.parallel in parallel.SHARDED and layout.world > 1
    if osft_config.osft and dtype == torch.bfloat16 and sharded:
        # The factors that OSFT trains are float32, and FSDP2 wants one dtype for all that trains
        # in a block.
        raise UserError(
            f"--osft with --train_dtype bfloat16 cannot be sharded with {compute.parallel}; leave "
            "--train_dtype out (--precision bf16 computes in bfloat16), or give --parallel ddp"
        )

    def built(build: Build) -> Any:
        model = build(dtype)
        if osft_config.osft:
            patterns = osft_config.osft_target_patterns or None
            osft.decompose(model, osft_config.osft_unfreeze_rank_ratio, patterns)
        return model

    model: Any = loading.build_lazily(lambda: built(read), lambda: built(skeleton))
    cost = flops.count(model)
    if compute.use_liger_kernels:
        liger.apply(model)
    if compute.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if compute.use_compile:
        attention.keep_out_of_graphs()
        for block in parallel.layers_of(model):
            block.compile()
    half = in_half(precision, cuda=ranks.device().type == "cuda")
    return parallel.spread(model, layout, parallel=compute.parallel, half=half), cost


def batches_of(
    samples: Samples,
    size: int,
    layout: Layout,
    compute: ComputeConfig,
    cost: flops.Flops,
    *,
    seed: int,
    longest: int | None,
) -> Batches:
    """The batches of a run: `size` samples a step, packed up to max_tokens_per_gpu, or
    micro_batch_size of them in a forward pass.

    `longest`: the fixed length of samples that are not packed.
    """
    budget = compute.max_tokens_per_gpu
    size = min(size, len(samples))
    if budget is not None and (most := int(samples.lengths.max())) > budget:
        raise UserError(
            f"the longest sample has {most} tokens; max_tokens_per_gpu is {budget}: raise it, or "
            "cut with --on_long truncate"
        )
    micro = min(compute.micro_batch_size or size, math.ceil(size / layout.dp_size))
    return Batches(
        samples=samples,
        global_batch=size,
        seed=seed,
        layout=layout,
        micro_batch=None if budget else micro,
        max_tokens=budget,
        quadratic=cost.quadratic,
        longest=None if budget else longest,
    )
