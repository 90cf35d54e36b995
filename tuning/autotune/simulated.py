"""Devices that exist as formulas only, where there is none to measure: for the benchmark of the
strategies and for tests.

Everything that the cost model has to guess is drawn by a seed, and the formulas are not its own:
memory is the highest of several moments, not a sum, and rounded and fragmented by an allocator;
speed has knees, steps and cliffs, communication hides behind computation, and trials are noisy.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tuning.autotune.observation import Observation
from tuning.autotune.score import LIMIT
from tuning.autotune.space import Candidate, Space
from tuning.autotune.workload import Device, Workload
from tuning.engine.peaks import rates_of

GIB = 2**30
DEVICES = (
    # name, GiB, memory TB/s, GB/s a device between devices of a node; their vendors' data sheets
    ("NVIDIA A100-SXM4-80GB", 80, 2.04, 300),
    ("NVIDIA A100-SXM4-40GB", 40, 1.56, 300),
    ("NVIDIA A100 80GB PCIe", 80, 1.94, 32),
    ("NVIDIA H100 80GB HBM3", 80, 3.35, 450),
    ("NVIDIA H100 PCIe", 80, 2.0, 64),
    ("NVIDIA H200", 141, 4.8, 450),
    ("NVIDIA L40S", 48, 0.86, 32),
    ("NVIDIA GeForce RTX 4090", 24, 1.01, 25),
    ("NVIDIA GeForce RTX 3090", 24, 0.94, 25),
    ("NVIDIA A10", 24, 0.6, 32),
)
SHAPES = (
    # layers, hidden, intermediate, vocabulary; parameters follow: SmolLM2-135M, Qwen2.5-0.5B,
    # Llama-3.2-1B, Qwen2.5-1.5B, Llama-3.2-3B, Qwen2.5-7B, Llama-3.1-8B, Llama-2-13B
    (30, 576, 1536, 49152),
    (24, 896, 4864, 151936),
    (16, 2048, 8192, 128256),
    (28, 1536, 8960, 151936),
    (28, 3072, 8192, 128256),
    (28, 3584, 18944, 152064),
    (32, 4096, 14336, 128256),
    (40, 5120, 13824, 32000),
)
METHODS = ("sft", "dpo", "kto", "engine_sft", "pretrain", "pretrain")
STEPS = 20
"""Timed steps of a trial."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a candidate really takes."""

    peak_bytes: float
    out_of_memory: bool
    step_seconds: float
    tokens_per_second: float
    crashes: bool = False


class Surface:
    """A training on devices, with hidden constants."""

    def __init__(self, seed: int) -> None:
        """Draws until something fits on the devices."""
        self.draw = random.Random(seed)
        while True:
            self._setting()
            self._hidden()
            self.truths = {c: self._truth(c) for c in self.space.candidates}
            if self.safe:
                break

    @cached_property
    def capacity(self) -> int:
        """Bytes of a device."""
        return self.device.capacity

    @property
    def safe(self) -> dict[Candidate, Truth]:
        """The candidates that may win."""
        most = LIMIT * self.device.capacity
        return {
            c: t
            for c, t in self.truths.items()
            if not t.out_of_memory and not t.crashes and t.peak_bytes <= most
        }

    @property
    def best(self) -> float:
        """Tokens a second of the fastest that may win."""
        return max(t.tokens_per_second for t in self.safe.values())

    def trial(self, candidate: Candidate) -> Observation:
        """Measure a candidate, with noise."""
        truth = self.truths[candidate]
        if truth.crashes:
            return Observation(candidate=candidate, outcome="crash", note="simulated")
        if truth.out_of_memory:
            return Observation(candidate=candidate, outcome="oom", note="simulated")
        steps = tuple(
            truth.step_seconds
            * math.exp(self.draw.gauss(0, self.h["noise"]))
            * (1.5 if self.draw.random() < 0.03 else 1.0)
            for _ in range(STEPS)
        )
        step = sorted(steps)[STEPS // 2]
        tokens = truth.tokens_per_second * truth.step_seconds / step
        peak = self.device.peak_flops
        mfu = None if peak is None else self._flops / (step * peak * self.device.count)
        return Observation(
            candidate=candidate,
            outcome="ok",
            step_seconds=steps,
            peak_bytes=int(truth.peak_bytes * (1 + self.draw.gauss(0, 0.003))),
            tokens_per_second=tokens,
            mfu=mfu,
        )

    def __str__(self) -> str:
        """What is trained on what."""
        w, d = self.workload, self.device
        return (
            f"{self.space.method} {w.parameters / 1e9:.2f}B on {d.count} x {d.name}, batch "
            f"{self.space.target}, {w.mean:.0f} to {w.longest} tokens"
        )

    def _setting(self) -> None:
        """A method, a model, devices, lengths and a batch."""
        draw = self.draw
        method = draw.choice(METHODS)
        alone = method in ("sft", "dpo", "kto")
        count = 1 if alone else draw.choice((1, 2, 4, 8, 16))
        nodes = 2 if count == 16 else 1
        name, gib, bandwidth, link = draw.choice(DEVICES)
        rates = rates_of(name)
        assert rates is not None and rates.bf16 is not None
        self.peak, self.bandwidth, self.link = rates.bf16 * 1e12, bandwidth * 1e12, link * 1e9
        self.device = Device.named(name, gib * GIB, count=count, nodes=nodes)
        if draw.random() < 0.15:
            self.device = replace(self.device, name="an unknown device", peak_flops=None)
        self._lengths(fixed=method == "pretrain")
        self.workload = self._workload(method, alone)
        sharding: Any = ("none", "full_shard", "hybrid_shard")
        self.space = Space(
            target=draw.choice((8, 16, 32, 48, 64, 128, 256)) * (1 if alone else count),
            processes=count,
            nodes=nodes,
            method=method,
            longest=self.workload.longest,
            mean=self.workload.mean,
            fixed_micro_batch=4 if method == "kto" else None,
            compiles=not alone and draw.random() < 0.5,
            sep_sizes=(1, 2) if count > 1 and draw.random() < 0.3 else (1,),
            sharding=None if alone else sharding,
        )

    def _lengths(self, *, fixed: bool) -> None:
        longest = self.draw.choice((256, 512, 1024, 2048, 4096, 8192))
        spread, middle = self.draw.uniform(0.3, 0.9), self.draw.uniform(0.2, 0.6)
        drawn = [longest * middle * math.exp(self.draw.gauss(0, spread)) for _ in range(512)]
        self.lengths = [longest] if fixed else [max(8, min(longest, int(n))) for n in drawn]

    def _workload(self, method: str, alone: bool) -> Workload:
        layers, hidden, inner, vocabulary = self.draw.choice(SHAPES)
        block = 2.5 * hidden * hidden + 3 * hidden * inner
        parameters = int(layers * block + vocabulary * hidden)
        adapter = int(layers * self.draw.choice((8, 16, 64)) * (6 * hidden + 3 * inner) * 1.5)
        half = not alone and self.draw.random() < 0.3
        return Workload(
            parameters=parameters + (adapter if alone else 0),
            trained=adapter if alone else parameters,
            layers=layers,
            hidden=hidden,
            intermediate=inner,
            vocabulary=vocabulary,
            longest=max(self.lengths),
            mean=sum(self.lengths) / len(self.lengths),
            lengths=tuple(self.lengths) if self.draw.random() < 0.5 else (),
            sequences=2 if method in ("dpo", "kto") else 1,
            padded=method != "pretrain",
            reference="adapter" if method in ("dpo", "kto") else "none",
            weight_bytes=2.0 if alone or half else 4.0,
            gradient_bytes=2.0 if half else 4.0,
            optimizer_bytes=4.0 if half else 8.0,
        )

    def _hidden(self) -> None:
        """What no one knows before measuring."""
        u = self.draw.uniform
        self.h = {
            "context": u(0.4, 1.5) * GIB,
            "collectives": u(0.2, 1.0) * GIB if self.device.count > 1 else 0.0,
            "attention_bytes": u(16, 40),
            "mlp_bytes": u(5, 13),
            "scores": u(2, 5) if self.draw.random() < 0.08 else 0.0,
            "adapter_inputs": u(1.0, 1.4) if self.workload.lora else 1.0,
            "logit_bytes": u(6, 16),
            "one_block": u(1.0, 1.6),
            "optimizer_copy": u(0.0, 1.0),
            "fragments": u(0.01, 0.12),
            "efficiency": u(0.4, 0.75),
            "knee": math.exp(u(math.log(300), math.log(6000))),
            "bend": u(0.7, 1.3),
            "waves": u(0.0, 0.08),
            "decline": u(0.0, 0.02),
            "checkpointing": u(1.2, 1.4),
            "launch": math.exp(u(math.log(80e-6), math.log(600e-6))),
            "loss": u(0.5, 2.0),
            "link": u(0.4, 0.9),
            "between_nodes": u(10e9, 50e9),
            "overlap": u(0.4, 0.95),
            "update": u(1.0, 2.5),
            "compiled_time": u(0.72, 1.03),
            "compiled_memory": u(0.7, 1.0),
            "compile_fails": self.draw.random() < 0.1,
            "retries": u(1.1, 1.6),
            "own_time": u(0.0, 0.04),
            "own_memory": u(0.0, 0.03),
            "noise": math.exp(u(math.log(0.003), math.log(0.03))),
        }

    def _truth(self, c: Candidate) -> Truth:
        # Which kernels and which blocks of the allocator a candidate gets.
        own = random.Random(f"{self.h['knee']} {c}")
        seconds = self._seconds(c) * math.exp(own.gauss(0, self.h["own_time"]))
        peak, out = self._memory(c, math.exp(own.gauss(0, self.h["own_memory"])))
        if peak > 0.97 * self.device.capacity:
            seconds *= self.h["retries"]
        mean = self.workload.mean * self.workload.sequences * self.space.target
        return Truth(
            peak_bytes=peak,
            out_of_memory=out,
            step_seconds=seconds,
            tokens_per_second=mean / seconds,
            crashes=bool(c.use_compile and self.h["compile_fails"]),
        )

    def _rows(self, c: Candidate) -> float:
        """Sequences in a forward pass."""
        w, ranks = self.workload, self.space.processes // c.sep_size
        if c.max_tokens_per_gpu is not None:
            return c.max_tokens_per_gpu / w.mean
        return (c.micro_batch or self.space.fixed_micro_batch or ranks) * w.sequences

    def _memory(self, c: Candidate, own: float) -> tuple[float, bool]:
        """Bytes that the device provides at most, and whether it has not got them; `own` is a
        factor of what comes and goes."""
        w, h, shards = self.workload, self.h, self._shards(c)
        tokens = (c.max_tokens_per_gpu or self._rows(c) * w.longest) / c.sep_size
        block = tokens * (h["attention_bytes"] * w.hidden + h["mlp_bytes"] * w.intermediate)
        # Attention that keeps its scores, heads of 64: what no one would expect of it.
        block += tokens * h["scores"] * w.longest * w.hidden / 64
        block *= h["adapter_inputs"] * (h["compiled_memory"] if c.use_compile else 1.0)
        block = math.ceil(block / 20e6) * 20e6
        inputs = 2 * tokens * w.hidden * w.layers
        logits = tokens * w.vocabulary * h["logit_bytes"]
        gradients = w.trained * w.gradient_bytes / shards
        held = (w.parameters * w.weight_bytes + w.trained * w.optimizer_bytes) / shards
        buckets = shards == 1 < self.device.count
        held += gradients if buckets or self.space.accumulation(c) > 1 else 0.0
        if shards > 1:
            held += 6 * (w.parameters / w.layers) + 2 * w.vocabulary * w.hidden
        elif w.weight_bytes == 4:
            held += 2 * w.parameters
        kept = inputs if c.gradient_checkpointing else block * w.layers
        moments = (
            kept + logits,
            kept + h["one_block"] * block + w.vocabulary * w.hidden * w.gradient_bytes / shards,
            (0.0 if buckets else gradients) + h["optimizer_copy"] * 4 * w.trained / shards,
        )
        used = held + own * max(moments)
        outside = h["context"] + h["collectives"]
        wanted = used * (1 + h["fragments"]) + outside
        least = used * (1 + h["fragments"] / 3) + outside
        capacity = self.device.capacity
        return min(wanted, 0.995 * capacity), least > capacity

    def _shards(self, c: Candidate) -> int:
        if c.sharding == "none":
            return 1
        hybrid = c.sharding == "hybrid_shard"
        return self.space.processes // (self.space.nodes if hybrid else 1)

    def _seconds(self, c: Candidate) -> float:
        w, h, s = self.workload, self.h, self.space
        rows, passes = self._rows(c), s.accumulation(c)
        computed = self._computed(rows) if c.max_tokens_per_gpu is None else w.mean
        in_pass = s.target * w.sequences / (passes * s.processes)
        tokens = in_pass * computed
        flops = in_pass * (computed * w.flops_per_token + computed**2 * w.attention_flops)
        work = flops / (self.peak * self._efficiency(tokens))
        work += h["loss"] * tokens * w.vocabulary * 12 / self.bandwidth
        work *= h["checkpointing"] if c.gradient_checkpointing else 1.0
        work *= 1.3 if w.reference != "none" else 1.0
        launches = w.layers * h["launch"] * (1.3 if c.gradient_checkpointing else 1.0)
        one = max(work, launches) + 0.15 * min(work, launches)
        one *= h["compiled_time"] if c.use_compile else 1.0
        if c.sep_size > 1:
            one += 16 * tokens * w.hidden * w.layers / (self.link * h["link"])
        sent = self._sent(c, one)
        once = h["update"] * w.trained / self._shards(c) * 26 / self.bandwidth
        return passes * sent[0] + sent[1] + once

    def _sent(self, c: Candidate, one: float) -> tuple[float, float]:
        """Seconds of a pass with its communication, and what is sent once a step."""
        w, h, s = self.workload, self.h, self.space
        inside, across = self.link * h["link"], min(self.link * h["link"], h["between_nodes"])
        everywhere = across if s.nodes > 1 else inside
        if s.processes == 1:
            return one, 0.0
        if c.sharding == "none":
            whole = 2 * w.trained * w.gradient_bytes / everywhere
            return one, max(whole * (1 - h["overlap"]), whole - 0.6 * one)
        hybrid = c.sharding == "hybrid_shard"
        moved = w.parameters * (2 * 2 + w.gradient_bytes) / (inside if hybrid else everywhere)
        hidden = h["overlap"] * moved
        once = 2 * w.trained * w.gradient_bytes / self._shards(c) / across if hybrid else 0.0
        return max(one, hidden) + moved - hidden, once

    def _computed(self, rows: float) -> float:
        """Tokens of a sequence as computed: padded to the longest of those in a pass."""
        if not self.workload.padded:
            return self.workload.mean
        share = sorted(self.lengths)
        n, total = len(share), 0.0
        for i, length in enumerate(share):
            total += length * (((i + 1) / n) ** rows - (i / n) ** rows)
        return total

    def _efficiency(self, tokens: float) -> float:
        h = self.h
        width = (self.workload.hidden / 2048) ** 0.5
        u = (tokens * width / h["knee"]) ** h["bend"]
        waves = 1 + h["waves"] * (math.ceil(tokens / 4096) / (tokens / 4096) - 1) ** 0.5
        late = 1 - h["decline"] * max(0.0, math.log2(tokens / 16384))
        return h["efficiency"] * u / (1 + u) / waves * late

    @property
    def _flops(self) -> float:
        """Model FLOPs of a step, as MFU counts them."""
        w = self.workload
        sequences = self.space.target * w.sequences
        return sequences * (w.mean * w.flops_per_token + w.mean**2 * w.attention_flops)
