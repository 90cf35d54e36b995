"""Attention over packed documents on the device, against the same on a CPU in float32."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_checks.rows import FAILED, OK
from benchmarks.gpu_checks.site import Context
from tuning.engine import attention, losses, model, ranks, setup
from tuning.engine.attention import Documents
from tuning.engine.config import ComputeConfig, ModelConfig
from tuning.engine.samples import Rows

HEADS, KV_HEADS = 8, 2
LAYERS = 2
"""Of the whole model."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""The largest difference, over the largest value of what is compared. bf16 has 8 bits: one
rounding is up to 0.4%."""
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
LENGTHS = {"cuda": [700, 3, 129, 1024, 1, 515, 64, 300], "cpu": [70, 3, 29, 1, 51, 20]}


@dataclass(frozen=True)
class Case:
    """One of the ways in which attention is computed."""

    name: str
    lengths: list[int] | None
    """Of the documents; None: rows of a batch without documents."""
    window: int | None = None
    width: int = 64


def run(context: Context) -> None:
    """A row a case and precision, and two for a whole model."""
    lengths = LENGTHS[context.device]
    even = [max(lengths) // 2] * 4
    cases = (
        Case("documents", lengths),
        Case("documents, window", lengths, window=17),
        Case("documents, width 12", lengths, width=12),
        Case("documents of one length", even),
        Case("rows of a batch", None),
    )
    for case in cases:
        for dtype in TOLERANCE:
            _compare(context, case, dtype)
    for precision in ("fp32", "bf16"):
        _whole_model(context, precision, lengths)


def _compare(context: Context, case: Case, dtype: torch.dtype) -> None:
    began = time.monotonic()
    torch.manual_seed(0)
    batch, tokens = (1, sum(case.lengths)) if case.lengths else (3, 200)
    shapes = [(batch, heads, tokens, case.width) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    # Rounded first, so that both sides compute from the same numbers.
    drawn = [torch.randn(shape).to(dtype) for shape in shapes]
    expected = _computed(case, [x.float() for x in drawn], torch.device("cpu"))
    device = torch.device(context.device)
    found = _computed(case, drawn, device)
    far = [_difference(a, b) for a, b in zip(found, expected, strict=True)]
    most = TOLERANCE[dtype]
    kernel = case.lengths is not None and len(set(case.lengths)) > 1
    kernel = kernel and attention.fits_kernel(drawn[0].to(device))
    name = "kernel" if kernel else "sdpa"
    context.say(
        f"{case.name}, {_short(dtype)}",
        OK if max(far) <= most else FAILED,
        f"{name}: off by {far[0]:.1e}, gradients {max(far[1:]):.1e}; {most:.0e} is allowed",
        time.monotonic() - began,
        by=name,
        output=far[0],
        gradients=far[1:],
        tolerance=most,
    )


def _computed(
    case: Case, drawn: list[torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, ...]:
    """The output and the gradients of q, k and v, in float32 on the CPU."""
    q, k, v = (x.to(device).requires_grad_() for x in drawn[:3])
    documents = Documents(case.lengths, device) if case.lengths else None
    out = attention.attend(q, k, v, documents, window=case.window)
    grads = torch.autograd.grad(out, (q, k, v), drawn[3].to(device))
    return tuple(x.float().cpu() for x in (out, *grads))


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value; infinite where a value is not finite."""
    if not torch.isfinite(found).all():
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _whole_model(context: Context, precision: str, lengths: list[int]) -> None:
    """The loss and the gradient norm of a packed row, as the engine computes them; in bf16 by the
    kernel, on a GPU that has it.
    """
    began = time.monotonic()
    loss, norm, _ = _step("fp32", lengths, torch.device("cpu"))
    found, found_norm, calls = _step(precision, lengths, torch.device(context.device))
    half = precision == "bf16"
    most = LOSS_TOLERANCE[torch.bfloat16 if half else torch.float32]
    far, far_norm = abs(found - loss) / loss, abs(found_norm - norm) / norm
    query = torch.empty(1, 1, 1, 32, dtype=torch.bfloat16, device=context.device)
    by_kernel = LAYERS if half and attention.fits_kernel(query) else 0
    fine = far <= most and far_norm <= 5 * most and calls == by_kernel
    context.say(
        f"a model, {precision}",
        OK if fine else FAILED,
        f"kernel in {calls} of {LAYERS} layers; loss off by {far:.1e}, gradient norm "
        f"{far_norm:.1e}; {most:.0e} and {5 * most:.0e} are allowed",
        time.monotonic() - began,
        kernel_layers=calls,
        loss=found,
        expected_loss=loss,
        norm=found_norm,
        expected_norm=norm,
        tolerance=most,
    )


def _step(precision: str, lengths: list[int], device: torch.device) -> tuple[float, float, int]:
    """(loss, gradient norm, calls of the kernel) of one forward and backward pass."""
    from tuning.engine import loop, parallel

    shape = ModelConfig(
        block_size=2048, vocab_size=512, num_layer=LAYERS, num_attention_heads=8,
        num_key_value_heads=2, hidden_size=256, intermediate_size=512,
    )  # fmt: skip
    network = model.build(shape, seed=0, eos_token_id=1, pad_token_id=0)
    spread = parallel.spread(network, ranks.layout(), device=device)
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(2, 512, (n,), generator=generator).numpy() for n in lengths]
    samples = Rows(tokens, tokens)
    cost = setup.flops.count(network)
    budget = ComputeConfig(max_tokens_per_gpu=sum(lengths))
    batches = setup.batches_of(
        samples, len(lengths), ranks.layout(), budget, cost, seed=0, longest=None
    )
    (row,) = batches.rows(batches.at(0), device)
    calls: list[Any] = []
    kernel = attention._varlen
    attention._varlen = lambda *args: calls.append(1) or kernel(*args)
    try:
        loss, _ = loop.losses_of(spread, row, precision, losses.cross_entropy)
        loss = loss / len(row.targets)
        loss.backward()
    finally:
        attention._varlen = kernel
    norm = spread.clip(1.0).item()
    return loss.item(), norm, len(calls)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
