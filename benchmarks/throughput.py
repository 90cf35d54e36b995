"""Tokens a second of response-only fine-tuning on samples of mixed lengths: the engine, packed; and
TRL's SFTTrainer, padded and packed.

    python benchmarks/throughput.py

A model of a few million parameters in fp32, all of which train. Lengths are lognormal (median 180,
sigma 0.8, cut to 16..1024), and the first 30% of a sample are a prompt without a loss. Counted are
the samples' own tokens: fill is work, but no result. All get the same samples, sixteen an optimizer
step, and the same settings; their loss on unseen samples afterwards says that they learnt alike.
TRL packs rows of 1,024 tokens, as long as the longest sample, before the training, which is not
counted; its steps then have whole rows and nearly as many samples. Rows that TRL puts together need
use_cache=False in the model's config: otherwise transformers lets samples see each other.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tuning.engine import loop, model, ranks, setup
from tuning.engine.config import ComputeConfig, LoopConfig, ModelConfig
from tuning.engine.samples import IGNORED, Rows

SHAPE = ModelConfig(
    block_size=1024,
    vocab_size=2048,
    num_layer=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    hidden_size=256,
    intermediate_size=768,
)
BATCH = 16
"""Samples of an optimizer step."""
WARM_UP, STEPS, ROUNDS = 1, 6, 3
LONGEST = 1024
CONFIG = LoopConfig(max_lr=1e-3, lr_scheduler="constant", warmup_steps=0, precision="fp32")
COMPUTE = ComputeConfig(max_tokens_per_gpu=4096)
PROMPT = 0.3
AIM = 2.0
BASELINE = "TRL, padded, 8 a pass"
Marks = list[tuple[float, int]]
"""When each step was over, and the samples' tokens seen by then."""


def drawn(number: int, seed: int) -> list[np.ndarray]:
    """Samples of some regularity: each repeats a short pattern of its own, of frequent tokens."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(math.log(180), 0.8, number), 16, LONGEST).astype(int)
    zipf = 1 / np.arange(1, SHAPE.vocab_size - 1)
    patterns = [generator.choice(SHAPE.vocab_size - 2, 8, p=zipf / zipf.sum()) + 2 for _ in lengths]
    return [np.resize(p, n) for p, n in zip(patterns, lengths, strict=True)]


def labelled(samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Labels without a loss on the prompt."""
    return [np.where(np.arange(len(x)) < PROMPT * len(x), IGNORED, x) for x in samples]


def built() -> Any:
    """The same weights each time."""
    return model.build(SHAPE, seed=0, eos_token_id=1, pad_token_id=0)


def engine(samples: Sequence[np.ndarray]) -> tuple[Marks, Any]:
    """Rows of up to 4,096 tokens."""
    marks: Marks = []
    layout = ranks.layout()
    spread, cost = setup.open_model(
        lambda _: built(), lambda _: built(), layout, COMPUTE, precision=CONFIG.precision
    )
    rows = Rows(samples, labelled(samples))
    batches = setup.batches_of(rows, BATCH, layout, COMPUTE, cost, seed=0, longest=None)
    # The samples are shuffled already; so all methods have the same steps.
    batches._orders[0] = np.arange(len(rows))
    loop.train(
        spread,
        batches,
        CONFIG,
        steps=WARM_UP + STEPS,
        directory=None,
        on_step=lambda record: marks.append((time.perf_counter(), record["tokens"])),
    )
    return marks, spread.module


def trl(samples: Sequence[np.ndarray], *, a_pass: int, packed: bool = False) -> tuple[Marks, Any]:
    """SFTTrainer with `a_pass` samples, or packed rows, a forward pass."""
    from datasets import Dataset
    from trl import pack_dataset

    data = Dataset.from_dict({"input_ids": samples, "labels": labelled(samples)})
    passes = BATCH // a_pass
    if packed:
        data = pack_dataset(data, LONGEST, strategy="bfd")
        data = data.shuffle(seed=0)
        passes = max(1, round(len(data) / (WARM_UP + STEPS) / a_pass))
    sizes = [len(row) for row in data["input_ids"]]
    a_step = a_pass * passes
    seen = np.cumsum([sum(sizes[i : i + a_step]) for i in range(0, len(sizes), a_step)])
    steps = min(len(seen), WARM_UP + STEPS)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=a_pass,
            gradient_accumulation_steps=passes,
            padding_free=packed,
        )
        times, network = trained(args, data)
    return [(at, int(tokens)) for at, tokens in zip(times, seen, strict=False)], network


def arguments(folder: str, **more: Any) -> Any:
    """CONFIG in TRL's words."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=folder,
        report_to=[],
        save_strategy="no",
        learning_rate=CONFIG.max_lr,
        lr_scheduler_type="constant",
        weight_decay=CONFIG.weight_decay,
        adam_beta2=CONFIG.adam_beta2,
        max_grad_norm=CONFIG.grad_clip_value,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **more,
    )


def trained(args: Any, data: Any) -> tuple[list[float], Any]:
    """When each step of a SFTTrainer was over, and its model."""
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    from tuning.engine.tokenizer import train_tokenizer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_log(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    network = built()
    network.config.use_cache = False
    tokenizer = train_tokenizer(["a"], 300, "")
    trainer = InOrder(
        model=network,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times[: args.max_steps], trainer.model


METHODS: dict[str, Callable[[Sequence[np.ndarray]], tuple[Marks, Any]]] = {
    "tuning, packed": engine,
    BASELINE: lambda samples: trl(samples, a_pass=8),
    "TRL, padded, 16 a pass": lambda samples: trl(samples, a_pass=BATCH),
    "TRL, packed": lambda samples: trl(samples, a_pass=1, packed=True),
}


@torch.no_grad()
def held_out_loss(network: Any, samples: Sequence[np.ndarray]) -> float:
    """Nats a token, sample by sample, as transformers computes it."""
    network.set_attn_implementation("sdpa")
    network.eval()
    total, counted = 0.0, 0
    for ids, labels in zip(samples, labelled(samples), strict=True):
        logits = network(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0, :-1]
        target = torch.from_numpy(labels)[1:]
        total += F.cross_entropy(logits, target, reduction="sum").item()
        counted += int((target != IGNORED).sum())
    return total / counted


def tokens_a_second(marks: Marks) -> float:
    """After the warm-up."""
    (begun, before), (ended, after) = marks[WARM_UP - 1], marks[-1]
    return (after - before) / (ended - begun)


def silence() -> None:
    """Warnings of the libraries would stand in the table."""
    import logging
    import warnings

    from datasets import disable_progress_bars

    disable_progress_bars()
    warnings.simplefilter("ignore")
    for name in ("transformers", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Print one table, and whether the aim was reached."""
    silence()
    samples = drawn(BATCH * (WARM_UP + STEPS), 0)
    unseen = drawn(32, 1)
    speeds: dict[str, list[float]] = {name: [] for name in METHODS}
    losses: dict[str, float] = {}
    names = list(METHODS)
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            marks, network = METHODS[name](samples)
            speeds[name].append(tokens_a_second(marks))
            losses[name] = held_out_loss(network, unseen)
    show(speeds, losses, sum(map(len, samples)))


def show(speeds: dict[str, list[float]], losses: dict[str, float], tokens: int) -> None:
    """Medians over rounds; ratios are taken within a round."""
    parameters = sum(p.numel() for p in built().parameters())
    a_step = tokens // (WARM_UP + STEPS)
    print(
        f"{parameters / 1e6:.1f}M parameters, {BATCH} samples or {a_step:,} tokens a step, {STEPS} "
        f"steps after {WARM_UP}, {ROUNDS} rounds, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':24} {'tokens/s':>9} {'of TRL, padded':>16} {'loss':>7}")
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(values, speeds[BASELINE], strict=True)]
        print(
            f"{name:24} {statistics.median(values):9,.0f} {statistics.median(ratios):15.2f}x "
            f"{losses[name]:7.3f}"
        )
    pairs = zip(speeds["tuning, packed"], speeds[BASELINE], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    said = "reached" if ratio >= AIM else "missed"
    print(f"the engine does {ratio:.2f} times the tokens of {BASELINE}; aim {AIM:.0f}: {said}")


if __name__ == "__main__":
    main()
