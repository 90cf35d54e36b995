"""Tokens a second, model FLOPs utilization (MFU) and peak memory of pre-training on one GPU.

    python benchmarks/mfu.py                # gpt-0.25b and gpt-1b, every setting
    python benchmarks/mfu.py gpt-0.25b      # one preset

Sequences of 4,096 random tokens, bf16 over fp32 weights, AdamW; plain, and with torch.compile,
Liger's kernels, gradient checkpointing, and all three. The micro-batch is the largest power of two
that fits, up to 32; a step is one micro-batch, so each pays for the optimizer. Shown are the means
of 20 steps without the first 5. What MFU counts is in tuning/engine/flops.py: what the model needs,
whatever is computed twice. Needs torch and transformers; this project need not be installed. Every
setting has a process of its own, since kernels that were put in stay in.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("gpt-0.25b", "gpt-1b")
SETTINGS: dict[str, dict[str, bool]] = {
    "plain": {},
    "compile": {"use_compile": True},
    "liger": {"use_liger_kernels": True},
    "checkpointing": {"gradient_checkpointing": True},
    "all": {
        "use_compile": True,
        "use_liger_kernels": True,
        "gradient_checkpointing": True,
    },
}
SEQ_LEN, STEPS, LEFT_OUT, MOST = 4096, 20, 5, 32
SMALL = {"seq_len": 64, "precision": "fp32"}
"""What --check changes: the preset tiny on whatever there is, to see that this program runs."""


def config_of(name: str, setting: str) -> Any:
    """A run of a preset on random tokens."""
    from tuning.engine.run_config import experiment_config, preset

    values = preset(name) | {
        "corpus": None,
        "use_mock_data": True,
        "mock_data_num_samples": MOST * STEPS,
        "seq_len": SEQ_LEN,
        "total_batch_size": SEQ_LEN,
        "micro_batch_size": 1,
        "max_steps": STEPS,
        "max_lr": 1e-4,
        "min_lr": None,
        **SETTINGS[setting],
    }
    return experiment_config("mfu", values | (SMALL if name == "tiny" else {}))


def measure(name: str, setting: str, most: int) -> dict[str, Any]:
    """One line of the table, at the largest micro-batch of at most `most` that fits."""
    import torch

    from tuning.engine import model, ranks, setup

    config = config_of(name, setting)
    spread, cost = setup.open_model(
        lambda _: model.build(config.shape, seed=0, eos_token_id=0, pad_token_id=0),
        lambda _: None,
        ranks.layout(),
        config.compute,
        precision=config.training.precision,
    )
    size = most
    while size:
        try:
            return {"micro_batch": size} | run(config, spread, cost, size)
        except torch.OutOfMemoryError:
            size //= 2
        # Outside of the handler, whose exception holds on to the tensors of the failed pass.
        spread.optimizers.clear()
        spread.module.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
    return {"failed": "out of memory"}


def run(config: Any, spread: Any, cost: Any, size: int) -> dict[str, Any]:
    """Steps of one micro-batch of `size` sequences."""
    import torch

    from tuning.engine import loop, ranks
    from tuning.engine.batches import Batches
    from tuning.engine.samples import MockSamples

    t = config.training
    samples = MockSamples(size * STEPS, config.seq_len, config.shape.vocab_size, 0)
    layout = ranks.layout()
    batches = Batches(
        samples=samples,
        global_batch=size,
        seed=0,
        layout=layout,
        micro_batch=size,
        longest=config.seq_len,
    )
    records: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loop.train(spread, batches, t, steps=STEPS, directory=None, on_step=records.append)
    seconds = [record["step_seconds"] for record in records[LEFT_OUT:]]
    batch = batches.at(0)
    needed = cost.training(batch.tokens, batch.squares, batch.loss_tokens)
    peak = loop.peak_flops(spread, t.precision)
    return {
        "tokens_per_second": batch.tokens * len(seconds) / sum(seconds),
        "mfu": needed * len(seconds) / sum(seconds) / peak if peak else None,
        "peak_memory_gb": records[-1]["peak_memory_gb"],
        "loss": records[-1]["loss"],
    }


def line(name: str, setting: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    start = f"{name:10} {setting:14}"
    if "failed" in found:
        return f"{start} {found['failed']}"
    mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.1%}"
    return (
        f"{start} {found['micro_batch']:11} {found['tokens_per_second']:9,.0f} {mfu:>7} "
        f"{found['peak_memory_gb']:8.1f} {found['loss']:6.2f}"
    )


def apart(name: str, setting: str, most: int) -> dict[str, Any]:
    """`measure()` in a process of its own; what it says in the last line is its answer."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, setting, str(most)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer
    return {"failed": (done.stderr.strip().splitlines() or ["no word of why"])[-1][:150]}


def table(presets: list[str], settings: list[str], most: int) -> None:
    """Print one table, line by line."""
    heads = f"{'micro-batch':>11} {'tokens/s':>9} {'MFU':>7} {'peak GiB':>8} {'loss':>6}"
    print(f"{'preset':10} {'setting':14} {heads}")
    for name in presets:
        for setting in settings:
            print(line(name, setting, apart(name, setting, most)), flush=True)


def main(words: list[str]) -> None:
    """Print what can be measured here."""
    import torch

    if words[:1] == ["--one"]:
        print(json.dumps(measure(words[1], words[2], int(words[3]))))
    elif words == ["--check"]:
        table(["tiny"], ["plain", "compile", "liger", "checkpointing"], 2)
    elif not torch.cuda.is_available():
        print("no GPU here: MFU is measured on CUDA only")
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {SEQ_LEN:,} tokens")
        table(words or list(PRESETS), list(SETTINGS), MOST)


if __name__ == "__main__":
    # The machine with the GPU may have a checkout of this project only.
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    main(sys.argv[1:])
