"""SFT (adapters, in 4 bits, of all weights), DPO and GRPO with TRL, and SFT on the engine, by the
entry points of the project, on a model that the first step pre-trains; and an SFT that is
interrupted and goes on.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks.rows import FAILED, OK
from benchmarks.gpu_checks.site import DATA, MODEL, Context, Failed
from tuning.runs.rundir import RunDirectory

FILES = ("config.json", "status.json", "result.json", "metrics.jsonl", "model/config.json")
STOP_AT = 3
"""Steps after which a training is interrupted."""
WAIT = 60.0
CLOSE = 1e-2
"""Largest difference of an adapter's weight that rounding may make; see docs/gpu.md."""


def base(context: Context) -> None:
    """run_pretrain.py: the model that the other steps start from."""
    _trained(context, "pre-training", "run_pretrain.py", "--model", MODEL)


def sft(context: Context) -> None:
    """run_sft.py."""
    _trained(context, "SFT", "run_sft.py", *_sft_flags(context))


def four_bit(context: Context) -> None:
    """run_sft.py --load_in_4bit: an adapter over a base in 4 bits."""
    _trained(context, "SFT in 4 bits", "run_sft.py", *_sft_flags(context), "--load_in_4bit")


def full(context: Context) -> None:
    """run_sft.py --full: all weights, in float32 while they train."""
    flags = ("--full", "--learning_rate", "1e-4")
    _trained(context, "SFT of all weights", "run_sft.py", *_sft_flags(context), *flags)


def pass_at_k(context: Context) -> None:
    """run_sft.py that measures pass@k on its way, sampled from the model in training."""
    asked = ("--pass_at_k_targets", "0.1", "0.9", "--pass_at_k_every", "16")
    _trained(context, "SFT that measures pass@k", "run_sft.py", *_sft_flags(context), *asked)


def sft_engine(context: Context) -> None:
    """run_sft.py --trainer engine: packed examples, all weights."""
    flags = ("--trainer", "engine", "--learning_rate", "1e-4")
    _trained(context, "SFT on the engine", "run_sft.py", *_sft_flags(context), *flags)


def dpo(context: Context) -> None:
    """run_dpo.py, from the run of SFT: its adapter is trained further, a copy is the reference."""
    flags = ("--pft_method", "dpo", "--train_size", context.sizes["dpo"])
    parent = ("--sft_train_size", context.sizes["sft"])
    _trained(context, "DPO", "run_dpo.py", *_data(), *flags, *parent, "--do_training")


def grpo(context: Context) -> None:
    """run_dpo.py --pft_method grpo, from the base, embedding and head trained whole: in float32,
    under weights in bfloat16.
    """
    flags = ("--pft_method", "grpo", "--train_size", context.sizes["grpo"])
    whole = ("--full_modules", "embed_tokens", "lm_head")
    _trained(context, "GRPO", "run_dpo.py", *_data(), *flags, *whole, "--do_training")


def sft_resume(context: Context) -> None:
    """SFT in a home of its own gets SIGTERM, goes on, and ends beside the one of the step sft."""
    began = time.monotonic()
    home = context.folder / "again"
    shutil.copytree(context.home / "models" / MODEL, home / "models" / MODEL)
    step = _interrupted(context, home)
    context.entry("run_sft.py", *_sft_flags(context), home=home)
    run = _newest(home, set())
    _require_whole(run)
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    if steps != list(range(1, len(steps) + 1)):
        raise Failed(f"the steps of the resumed run's metrics.jsonl are {steps}")
    straight = context.home / "models" / run.name
    if not straight.is_dir():
        raise Failed(f"stopped at step {step} and resumed; no straight run to compare with")
    far = _furthest(straight / "model", run.path / "model")
    says = "bit for bit" if far == 0.0 else f"off by {far:.1e}, {CLOSE:.0e} is allowed"
    context.say(
        "SFT, interrupted",
        OK if far <= CLOSE else FAILED,
        f"SIGTERM after step {step}, exit code 75, resumed to step {steps[-1]}: against a "
        f"straight run {says}",
        time.monotonic() - began,
        stopped_at=step,
        difference=far,
        bit_for_bit=far == 0.0,
    )


def _interrupted(context: Context, home: Path) -> int:
    """Start SFT and end it with SIGTERM after some steps; returns the step of its checkpoint."""
    process = context.start("run_sft.py", *_sft_flags(context), home=home)
    end = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < end:
        runs = [RunDirectory(path) for path in (home / "models").glob(f"{MODEL}_*")]
        if any(len(run.metrics()) >= STOP_AT for run in runs):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    code = process.wait()
    if code == 0:
        raise Failed("SFT ended before it could be interrupted")
    if code != 75:
        raise context.failure("run_sft.py under SIGTERM", code)
    saved = _newest(home, set()).path.glob("checkpoint-[0-9]*")
    return max(int(path.name.rpartition("-")[2]) for path in saved)


def _data() -> tuple[str, ...]:
    return ("--model", MODEL, *DATA)


def _sft_flags(context: Context) -> tuple[object, ...]:
    return (*_data(), "--train_size", context.sizes["sft"], "--do_training")


def _trained(context: Context, what: str, script: str, *flags: object) -> None:
    """A row of a training: the run directory is whole, its losses are finite, how fast it was."""
    before = {path.name for path in (context.home / "models").glob("*")}
    seconds = context.entry(script, *flags)
    run = _newest(context.home, before)
    _require_whole(run)
    found = _figures(run)
    finite = math.isfinite(found["first_loss"]) and math.isfinite(found["last_loss"])
    device = run.result.get("device")
    context.say(
        what,
        OK if finite and device == context.device else FAILED,
        f"{found['rate']:,.1f} {found['unit']}/s on {device}, loss {found['first_loss']:.3f} to "
        f"{found['last_loss']:.3f} in {found['steps']} steps, {run.name} is whole",
        seconds,
        run=run.name,
        **found,
    )


def _newest(home: Path, before: set[str]) -> RunDirectory:
    """The run that was not there before, other than the base."""
    made = [
        path
        for path in (home / "models").glob("*")
        if (path / "config.json").exists() and path.name not in before
    ]
    trained = [path for path in made if path.name != MODEL] or made
    if not trained:
        raise Failed("no run directory was made")
    return RunDirectory(max(trained, key=lambda path: path.stat().st_mtime))


def _require_whole(run: RunDirectory) -> None:
    """Failed unless a run is marked done and has its files."""
    adapter = (run.path / "model" / "adapter_config.json").exists()
    files = [name for name in FILES if not (adapter and name == "model/config.json")]
    files.append(f"model/{'adapter_model' if adapter else 'model'}.safetensors")
    missing = [name for name in files if not (run.path / name).exists()]
    if missing or not run.done("train"):
        raise Failed(f"{run.name} is not whole: done {run.done('train')}, missing {missing}")


def _figures(run: RunDirectory) -> dict[str, Any]:
    """Losses, and examples a second without the first step; perplexities on the way count."""
    lines = [line for line in run.metrics() if "loss" in line]
    first, last = lines[0], lines[-1]
    seconds = max(last["seconds"] - first["seconds"], 1e-9)
    seen, unit = run.result.get("data_points_seen"), "examples"
    if seen is None:
        seen, unit = run.result["train_tokens"], "tokens"
    return {
        "rate": seen * (len(lines) - 1) / len(lines) / seconds,
        "unit": unit,
        "steps": last["step"],
        "first_loss": first["loss"],
        "last_loss": last["loss"],
        "train_seconds": run.result["train_seconds"],
    }


def _furthest(left: Path, right: Path) -> float:
    """The largest difference of any weight of two adapters."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (left, right))
    if ours.keys() != theirs.keys():
        return math.inf
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)
