"""The engine: tokens a second, MFU and memory of from-scratch training, and resumed = straight."""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_checks.rows import FAILED, MEMORY, OK, SKIPPED
from benchmarks.gpu_checks.site import Context, Failed

STEPS, LEFT_OUT = 14, 4
"""Optimizer steps, and how many of them warm up."""
SEQ_LEN = 4096
SMALL = {"preset": "tiny", "seq_len": 64, "steps": 6, "most": 2}
"""Without a GPU."""
LIGER_NEAR = 0.05
"""Of a loss after STEPS steps in bf16: how far other kernels may end from the first."""


def sizes(context: Context) -> None:
    """About 0.25 billion parameters, and 1.5: their weights, gradients and moments take 25 GB."""
    _row(context, "gpt-0.25b", most=8)
    _row(context, "gpt-1b", most=8, gradient_checkpointing=True)


def compiled(context: Context) -> None:
    """The smaller one with torch.compile."""
    _row(context, "gpt-0.25b", most=8, use_compile=True)


def compiled_billion(context: Context) -> None:
    """The larger one with torch.compile."""
    _row(context, "gpt-1b", most=8, gradient_checkpointing=True, use_compile=True)


def liger(context: Context) -> None:
    """The smaller one with Liger's kernels, beside itself without: the same loss."""
    if context.device != "cuda":
        raise Failed("Liger's kernels need a GPU", SKIPPED)
    plain = _row(context, "gpt-0.25b", most=8)
    fused = _row(context, "gpt-0.25b", most=8, use_liger_kernels=True)
    if plain is None or fused is None:
        raise Failed("nothing to compare")
    far = max(abs(fused[name] - plain[name]) for name in ("first_loss", "last_loss"))
    rate, memory = (fused[name] / plain[name] for name in ("tokens_per_second", "peak_memory_gb"))
    context.say(
        "with Liger against without",
        OK if far <= LIGER_NEAR else FAILED,
        f"losses are off by {far:.1e}, {LIGER_NEAR} is allowed; {rate:.2f} times the tokens/s, "
        f"{memory:.2f} times the memory",
        difference=far,
        speed=rate,
        memory=memory,
    )


def _row(context: Context, name: str, *, most: int, **compute: bool) -> dict[str, Any] | None:
    """A row, and its figures; None without a sequence that fits."""
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    _free()
    began = time.monotonic()
    length, steps = SEQ_LEN, STEPS
    if context.device == "cpu":
        name, length, steps, most = (SMALL[k] for k in ("preset", "seq_len", "steps", "most"))
    what = ", ".join([name, *(setting.removeprefix("use_") for setting in compute)])
    found = _largest(context, name, length, steps, most, compute)
    seconds = time.monotonic() - began
    if found is None:
        context.say(what, MEMORY, "one sequence does not fit", seconds)
        return None
    fell = math.isfinite(found["last_loss"]) and found["last_loss"] < found["first_loss"]
    mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.1%}"
    context.say(
        what,
        OK if fell else FAILED,
        f"{found['tokens_per_second']:,.0f} tokens/s, MFU {mfu}, peak {found['peak_memory_gb']} "
        f"GiB, {found['micro_batch']} x {length} tokens, {found['parameters'] / 1e9:.2f} B, loss "
        f"{found['first_loss']:.2f} to {found['last_loss']:.2f} in {steps} steps",
        seconds,
        **found,
    )
    return found


def _largest(
    context: Context, name: str, length: int, steps: int, most: int, compute: dict[str, bool]
) -> dict[str, Any] | None:
    """Figures at the largest micro-batch of at most `most` that fits; None if none does."""
    import torch

    from tuning.engine import model, ranks, setup
    from tuning.engine.config import ComputeConfig, ModelConfig
    from tuning.engine.run_config import preset
    from tuning.flags import build

    shape = build(ModelConfig, preset(name))

    def made(_: torch.dtype) -> Any:
        # Random weights of a billion parameters take half a minute on a CPU.
        with torch.device(context.device):
            return model.build(shape, seed=0, eos_token_id=0, pad_token_id=0)

    spread, cost = setup.open_model(
        made,
        lambda _: None,
        ranks.layout(),
        ComputeConfig(**compute),
    )
    size = most
    while size:
        try:
            return _measured(spread, cost, size, length, steps, shape.vocab_size)
        except torch.OutOfMemoryError:
            size //= 2
        # Outside of the handler, whose exception holds on to the tensors of the failed pass.
        spread.optimizers.clear()
        spread.module.zero_grad()
        _free()
        torch.compiler.reset()
    return None


def _free() -> None:
    """Give back the memory of what is gone."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _measured(
    spread: Any, cost: Any, size: int, length: int, steps: int, vocabulary: int
) -> dict[str, Any]:
    """Steps of one micro-batch of `size` sequences, each of which pays for the optimizer."""
    import torch

    from tuning.engine import loop, ranks
    from tuning.engine.batches import Batches
    from tuning.engine.config import LoopConfig

    config = LoopConfig(max_lr=3e-4, lr_scheduler="constant", warmup_steps=2)
    batches = Batches(
        samples=_frequent(size * steps, length, vocabulary),
        global_batch=size,
        seed=0,
        layout=ranks.layout(),
        micro_batch=size,
        longest=length,
    )
    records: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loop.train(spread, batches, config, steps=steps, directory=None, on_step=records.append)
    warm = min(LEFT_OUT, steps - 1)
    seconds = sum(record["step_seconds"] for record in records[warm:]) / (steps - warm)
    batch = batches.at(0)
    needed = cost.training(batch.tokens, batch.squares, batch.loss_tokens)
    peak = loop.peak_flops(spread, config.precision)
    return {
        "micro_batch": size,
        "parameters": sum(p.numel() for p in spread.module.parameters()),
        "tokens_per_second": batch.tokens / seconds,
        "mfu": needed / seconds / peak if peak else None,
        "peak_memory_gb": records[-1]["peak_memory_gb"],
        "first_step_seconds": records[0]["step_seconds"],
        "first_loss": records[0]["loss"],
        "last_loss": records[-1]["loss"],
    }


def _frequent(number: int, length: int, vocabulary: int) -> Any:
    """Sequences of random tokens, some of them much more frequent: that can be learnt at once."""
    from tuning.engine.samples import Rows

    odds = 1 / np.arange(1, vocabulary + 1)
    drawn = np.random.default_rng(0).choice(vocabulary, (number, length), p=odds / odds.sum())
    return Rows(list(drawn), list(drawn))


RESUMED = 10
STOP = 5
WIDTHS = {"cuda": 256, "cpu": 32}
"""Of the model, and its longest sequence."""
CLOSE = 1e-3
"""Largest difference of a parameter that rounding may make in RESUMED steps; see docs/gpu.md."""


def resume(context: Context) -> None:
    """A training that is stopped and resumed, beside two that are not; packed and in blocks."""
    for packed in (True, False):
        began = time.monotonic()
        what = "packed documents" if packed else "blocks of one length"
        with tempfile.TemporaryDirectory() as folder:
            width = WIDTHS[context.device]
            straight, other = (_trained(None, packed, width) for _ in range(2))
            _trained(Path(folder), packed, width, stop_after=STOP)
            resumed = _trained(Path(folder), packed, width)
        again, far = _furthest(straight, other), _furthest(straight, resumed)
        context.say(
            what,
            OK if far <= max(CLOSE, 2 * again) else FAILED,
            f"resumed {_says(far)}; two that were not stopped: {_says(again)}",
            time.monotonic() - began,
            resumed=far,
            repeated=again,
            bit_for_bit=far == 0.0,
        )


def _says(far: float) -> str:
    return "bit for bit" if far == 0.0 else f"off by {far:.1e}"


def _trained(
    directory: Path | None, packed: bool, width: int, stop_after: int | None = None
) -> dict[str, Any]:
    """The weights of a small model after RESUMED steps, or after `stop_after`; that of blocks has
    dropout, for which the kernel of packed documents is not used.
    """
    from tuning.engine import loop, model, ranks, setup
    from tuning.engine.config import ComputeConfig, LoopConfig, ModelConfig
    from tuning.engine.export import whole_weights
    from tuning.engine.samples import Rows
    from tuning.runs.errors import Interrupted

    shape = ModelConfig(
        block_size=width, vocab_size=512, num_layer=2, num_attention_heads=4,
        num_key_value_heads=2, hidden_size=width, intermediate_size=2 * width,
        dropout=0.0 if packed else 0.1,
    )  # fmt: skip
    compute = ComputeConfig(max_tokens_per_gpu=2 * width if packed else None, micro_batch_size=4)
    spread, cost = setup.open_model(
        lambda _: model.build(shape, seed=0, eos_token_id=1, pad_token_id=0),
        lambda _: None,
        ranks.layout(),
        compute,
    )
    generator = np.random.default_rng(0)
    lengths = generator.integers(width // 8, width, 64) if packed else np.full(64, width // 2)
    tokens = [generator.integers(2, 512, n) for n in lengths]
    batches = setup.batches_of(
        Rows(tokens, tokens), 8, ranks.layout(), compute, cost, seed=0,
        longest=None if packed else width // 2,
    )  # fmt: skip
    done: list[Any] = []
    config = LoopConfig(max_lr=1e-3, warmup_steps=2)
    try:
        loop.train(
            spread, batches, config, steps=RESUMED, directory=directory, save_every=RESUMED,
            on_step=done.append, should_stop=lambda: len(done) == stop_after,
        )  # fmt: skip
    except Interrupted:
        assert stop_after is not None
    return whole_weights(spread)


def _furthest(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The largest difference of any parameter."""
    return max((left[name] - right[name]).abs().max().item() for name in left)
