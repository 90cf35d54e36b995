"""What memory and time of a candidate are sums of, from analytic counts: one function a resource,
each term named, in bytes or seconds. What is wrong with them is left to fit.py.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from statistics import NormalDist

from tuning.autotune.space import Candidate, Space
from tuning.autotune.workload import Device, Workload

GIB = 2**30
MEMORY = {
    # term: standard deviation of the log of its factor
    "fixed": 0.5,
    "states": 0.08,
    "whole_weights": 0.4,
    "activations": 0.35,
    "recomputed": 0.35,
    "logits": 0.4,
    "optimizer_step": 0.8,
}
TIME = {
    "products": 0.3,
    "padding": 0.4,
    "recomputing": 0.35,
    "elements": 0.6,
    "launches": 0.8,
    "filling": 1.2,
    "exchange_pass": 0.9,
    "exchange_step": 0.9,
    "update": 0.6,
    "sampling": 1.0,
}
UNKNOWN = {"products": 1.5, "elements": 1.5, "update": 1.5, "filling": 1.8, "recomputing": 1.5}
"""The same, where no peak is published."""
GUESSED = {"padding": 0.7}
"""The same, where padding is guessed, since no lengths are known."""
_UNKNOWN_PEAK, _CPU_PEAK = 150e12, 0.2e12
"""FLOP/s that predictions start from there."""
_FRAGMENTS = 1.06
"""What the allocator reserves of what comes and goes, over what is used of it."""
_EFFICIENCY = 0.6
"""Of matrix products that are large enough, of the peak."""
_FLOPS_PER_BYTE = 250
"""Peak FLOP/s over memory bandwidth; 156 (A100) to 330 (H100 PCIe), from their data sheets."""
_NVLINK, _PCIE, _BETWEEN_NODES = 200e9, 20e9, 20e9
"""Bytes a second and device that collectives reach: two thirds of NVLink 3 (A100) or a half of
NVLink 4, of PCIe 4 with 16 lanes, and of a network card of 200 Gbit/s."""
_HAS_NVLINK = re.compile(r"SXM|HBM3|H200(?! NVL)|H20\b|B200|GH200|MI300X")
_FILLING = 500
"""Tokens of a pass that take as long as none: below, weights are read and cores idle."""
_LAUNCHES = 400e-6
"""Seconds a layer, forward and backward, below which its kernels' launches do not let it go."""


def sequences_of(workload: Workload, space: Space, candidate: Candidate) -> float:
    """Sequences in a forward pass of a rank, or of a group that shares them; inf: packed."""
    if candidate.max_tokens_per_gpu is not None:
        return math.inf
    ranks = space.processes // candidate.sep_size
    examples = candidate.micro_batch or space.fixed_micro_batch or max(1, space.target // ranks)
    return examples * workload.sequences


def tokens_of(workload: Workload, space: Space, candidate: Candidate, *, most: bool) -> float:
    """Tokens of a forward pass on a device: of the longest sequences, or of usual ones."""
    if candidate.max_tokens_per_gpu is not None:
        return candidate.max_tokens_per_gpu / candidate.sep_size
    sequences = sequences_of(workload, space, candidate)
    return sequences * (workload.longest if most else workload.mean) / candidate.sep_size


def memory(workload: Workload, device: Device, space: Space, c: Candidate) -> dict[str, float]:
    """Bytes of one device, by the names of MEMORY.

    Activations kept for the backward pass follow Korthikanti et al. (arXiv 2205.05198, section 4),
    for a gated MLP and attention that keeps no scores; logits are kept in the compute precision, in
    fp32 for the loss, and as their gradient. The optimizer's own moment is counted by what it
    takes above them.
    """
    w, size = workload, 2 if c.precision == "bf16" else 4
    shards = shards_of(space, c)
    states = w.parameters * w.weight_bytes + w.trained * w.optimizer_bytes
    states += w.parameters * w.weight_bytes if w.reference == "copy" else 0.0
    tokens = _FRAGMENTS * tokens_of(w, space, c, most=True)
    kept = tokens * (12 * w.hidden + 4 * w.intermediate) * size * (0.85 if c.use_compile else 1)
    inputs = tokens * w.layers * w.hidden * size
    recomputed = kept + inputs if c.gradient_checkpointing else 0.0
    block = (w.parameters - w.vocabulary * w.hidden) / w.layers
    # FSDP holds two gathered blocks; autocast keeps a copy of fp32 weights in the precision.
    whole = 2 * block + w.vocabulary * w.hidden if shards > 1 else 0.0
    whole += w.parameters if w.weight_bytes > size and shards == 1 else 0.0
    activations = 0.0 if c.gradient_checkpointing else kept * w.layers
    logits = tokens * w.vocabulary * (2 * size + 4)
    gradients = w.trained * w.gradient_bytes / shards
    temporary = 0.5 * w.trained * 4 / shards
    if space.accumulation(c) == 1 and (shards > 1 or device.count == 1):
        # Gradients take the place of activations, layer by layer; DDP holds them from the start.
        gradients, temporary = 0.0, temporary + gradients
    return {
        "fixed": 0.9 * GIB + (0.5 * GIB if device.count > 1 else 0.0),
        "states": states / shards + gradients,
        "whole_weights": whole * size,
        "activations": activations,
        "recomputed": recomputed,
        "logits": logits,
        "optimizer_step": max(0.0, temporary - activations - recomputed - logits),
    }


def seconds(workload: Workload, device: Device, space: Space, c: Candidate) -> dict[str, float]:
    """Seconds of an optimizer step, by the names of TIME. `products` is the least that matrix
    products take, with `elements` what memory adds to it, `launches` and `filling` what every pass
    costs however small it is, `exchange` what devices send each other, a pass and a step, and
    `sampling` the completions of a step, all at once and token by token.
    """
    w, size = workload, 2 if c.precision == "bf16" else 4
    cpu = device.name.lower().startswith("cpu")
    peak = device.peak_flops or (_CPU_PEAK if cpu else _UNKNOWN_PEAK)
    bandwidth = peak / _FLOPS_PER_BYTE
    passes, shards = space.accumulation(c), shards_of(space, c)
    padding = padding_of(w, space, c)
    tokens = space.target * w.sequences * w.mean / space.processes
    products = flops_of(w, space) / space.processes / (peak * _EFFICIENCY)
    again = 1 + w.forward_share if w.reference != "none" else 1.0
    forward = padding * products * w.forward_share
    tokens *= padding
    inner = tokens * w.layers * (24 * w.hidden + 6 * w.intermediate) * size
    elements = (inner + tokens * w.vocabulary * (2 * size + 8)) / bandwidth
    faster = 0.6 if c.use_compile else 1.0
    weights, link = w.parameters * size, _link(device, space, c)
    fill = passes * _FILLING * w.flops_per_token / c.sep_size / (peak * _EFFICIENCY)
    gathers = 3 if c.gradient_checkpointing else 2
    shared = 8 * tokens * w.layers * w.hidden * size / _inside(device) if c.sep_size > 1 else 0.0
    one_token = w.parameters * size / bandwidth + w.layers * _LAUNCHES / 3
    return {
        "products": products * again,
        "padding": (padding - 1) * products * again,
        "recomputing": forward if c.gradient_checkpointing else 0.0,
        "elements": elements * again * faster * (1.3 if c.gradient_checkpointing else 1.0),
        "launches": passes * w.layers * _LAUNCHES * again * faster,
        "filling": fill * again,
        "exchange_pass": (passes * gathers * weights / link if shards > 1 else 0.0) + shared,
        "exchange_step": _reduced(w, device, space, c),
        "update": w.trained / shards * (16 + 2 * w.gradient_bytes) / bandwidth,
        "sampling": w.sampled * one_token,
    }


def padding_of(workload: Workload, space: Space, candidate: Candidate) -> float:
    """Tokens that are computed over those of the sequences: those of a pass are as long as the
    longest of them. From the lengths; without any, as if they were log-normal, with the longest
    three standard deviations above the middle.
    """
    w, n = workload, sequences_of(workload, space, candidate)
    if not w.padded or n == math.inf:
        return 1.0
    if not w.lengths:
        deviations = NormalDist().inv_cdf(n / (n + 1))
        return min(w.longest / w.mean, (w.longest / w.mean) ** (deviations / 3))
    lengths, of = sorted(w.lengths), len(w.lengths)
    above = ((i / of) ** n for i in range(of + 1))
    expected = sum(
        length * (high - low) for length, (low, high) in zip(lengths, pairwise(above), strict=True)
    )
    return expected / (sum(lengths) / of)


def flops_of(workload: Workload, space: Space) -> float:
    """Model FLOPs of an optimizer step over all processes, as MFU counts them."""
    w = workload
    per_sequence = w.mean * w.flops_per_token + w.mean**2 * w.attention_flops
    return space.target * w.sequences * per_sequence


def shards_of(space: Space, candidate: Candidate) -> int:
    """Devices that the states are spread over."""
    whole = {"none": 1, "full_shard": space.processes}
    return whole.get(candidate.sharding, space.processes // space.nodes)


def _inside(device: Device) -> float:
    """Bytes a second between devices of a node, by what their names say."""
    return _NVLINK if _HAS_NVLINK.search(device.name) else _PCIE


def _link(device: Device, space: Space, candidate: Candidate) -> float:
    within = space.nodes == 1 or candidate.sharding == "hybrid_shard"
    return _inside(device) if within else min(_inside(device), _BETWEEN_NODES)


def _reduced(w: Workload, device: Device, space: Space, c: Candidate) -> float:
    """Seconds for the gradients of a step: an all-reduce, where they are not sharded over all
    processes."""
    if space.processes == 1 or c.sharding == "full_shard":
        return 0.0
    share = w.trained * w.gradient_bytes / (1 if c.sharding == "none" else shards_of(space, c))
    within = _inside(device)
    return 2 * share / (within if space.nodes == 1 else min(within, _BETWEEN_NODES))
