"""A very small model, data and settings of the engine, and one training of them; also the program
that processes of a test run under torchrun:

    torchrun --nproc_per_node 2 tests/engine/small.py OUT '{"name": {"parallel": "fsdp2"}, ...}'

writes OUT/name.pt with the losses and the whole weights of each case.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuning.engine import loop, model, osft, parallel, ranks
from tuning.engine.batches import Batches
from tuning.engine.config import ComputeConfig, LoopConfig, ModelConfig, OSFTConfig
from tuning.engine.export import whole_weights
from tuning.engine.samples import Blocks, Rows, Samples
from tuning.engine.setup import open_model
from tuning.runs.errors import Interrupted

SHAPE = ModelConfig(
    block_size=32,
    vocab_size=96,
    num_layer=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    hidden_size=64,
    intermediate_size=128,
)
SHAPES = {
    "dense": SHAPE,
    "gqa": replace(SHAPE, num_key_value_heads=2),
    "dropout": replace(SHAPE, dropout=0.2),
    "moe": replace(
        SHAPE, num_key_value_heads=2, use_moe=True, num_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
}  # fmt: skip
CONFIG = LoopConfig(
    max_lr=1e-3,
    min_lr=1e-4,
    warmup_steps=3,
    grad_clip_value=0.1,
    router_aux_loss_coef=0.05,
    precision="fp32",
)
STEPS = 5
BATCH, MICRO_BATCH = 8, 2
"""Eight sequences a step, two a row: four rows, one by one or side by side."""


def blocks() -> Blocks:
    """Documents of random tokens, cut into blocks of 32."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 60, 80)
    tokens = generator.integers(0, 96, int(lengths.sum()))
    return Blocks(tokens, np.cumsum(lengths) - lengths, 32, 48)


def rows(number: int = 48) -> Rows:
    """Rows of many lengths, with the loss on their second half."""
    generator = np.random.default_rng(1)
    ids = [generator.integers(0, 96, n) for n in generator.integers(4, 40, number)]
    labels = [np.where(np.arange(len(x)) < len(x) // 2, -100, x) for x in ids]
    return Rows(ids, labels)


def furthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest difference of any parameter."""
    assert left.keys() == right.keys()
    return max((left[k] - right[k]).abs().max().item() for k in left)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def outside(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], ratio: float) -> bool:
    """Whether a matrix has moved, and only outside of what OSFT keeps at a ratio.

    Saved weights are rounded to float32, which a small change is not far above.
    """
    name = "model.layers.0.mlp.down_proj.weight"
    change, rank = after[name] - before[name], min(before[name].shape)
    kept = rank - round(rank * ratio)
    return 0 < osft.leak(before[name], change, kept) < 1e-4


def train(
    directory: Path | None,
    *,
    shape: str = "dense",
    packed: bool = False,
    samples: Samples | None = None,
    ratio: float | None = None,
    batch_size: int | None = None,
    max_steps: int = STEPS,
    stop_after: int | None = None,
    save_every_steps: int | None = 5000,
    **changes: Any,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], parallel.Spread]:
    """(whole weights, metrics of each step done here, the model in place).

    `batch_size`: samples of a packed step, or sequences of a row. On one thread wherever it runs:
    more add up in another order.
    """
    torch.set_num_threads(1)
    names = {f.name for f in fields(ComputeConfig)}
    compute = ComputeConfig(**{k: v for k, v in changes.items() if k in names})
    config = replace(CONFIG, **{k: v for k, v in changes.items() if k not in names})
    if packed:
        compute = replace(compute, max_tokens_per_gpu=64)
    layout = ranks.layout(compute.sep_size)

    def made(_: torch.dtype) -> Any:
        return model.build(SHAPES[shape], seed=0, eos_token_id=1, pad_token_id=0)

    orthogonal = OSFTConfig(osft=ratio is not None, osft_unfreeze_rank_ratio=ratio or 0.0)
    spread, cost = open_model(
        made, made, layout, compute, osft_config=orthogonal, precision=config.precision
    )
    samples = samples or (rows() if packed else blocks())
    batches = Batches(
        samples=samples, global_batch=batch_size or 12 if packed else BATCH, seed=config.seed,
        layout=layout, micro_batch=None if packed else batch_size or MICRO_BATCH,
        max_tokens=compute.max_tokens_per_gpu, quadratic=cost.quadratic,
    )  # fmt: skip
    metrics: list[dict[str, Any]] = []
    try:
        loop.train(
            spread, batches, config, steps=max_steps, directory=directory,
            save_every=save_every_steps, on_step=metrics.append,
            should_stop=lambda: len(metrics) == stop_after,
        )  # fmt: skip
    except Interrupted:
        assert stop_after is not None
    return whole_weights(spread), metrics, spread


def main(out: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Run cases in the processes that torchrun started."""
    ranks.join()
    for name, case in cases.items():
        if "a_node" in case:
            os.environ["LOCAL_WORLD_SIZE"] = str(case.pop("a_node"))
        with tempfile.TemporaryDirectory() as fresh:
            folder = Path(ranks.from_first(str(case.pop("directory", fresh))))
            weights, metrics, _ = train(folder, **case)
            ranks.wait()
        if ranks.rank() == 0:
            torch.save({"weights": weights, "metrics": metrics}, out / f"{name}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
