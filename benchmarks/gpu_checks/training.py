"""SFT (adapters, in 4 bits, of all weights), DPO, KTO and GRPO with TRL, by transformers and by
unsloth, and SFT on the engine, by the entry points of the project, on a model that the first step
pre-trains; and an SFT that is interrupted and goes on.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks.rows import FAILED, OK, SKIPPED
from benchmarks.gpu_checks.site import DATA, MODEL, Context, Failed
from tuning.runs.rundir import RunDirectory

FILES = ("config.json", "status.json", "result.json", "metrics.jsonl", "model/config.json")
STOP_AT = 3
"""Steps after which a training is interrupted."""
WAIT = 60.0
CLOSE = 1e-2
"""Largest difference of an adapter's weight that rounding may make; see docs/gpu.md."""
NEAR = 0.05
"""Of a loss: how far another way of computing the same training may end from the first."""
TRANSFORMERS = ("--backend_train", "transformers")
UNSLOTH = ("--backend_train", "unsloth")
WHOLE = ("--full_modules", "embed_tokens", "lm_head")
"""Embedding and head trained whole: in float32, under weights in bfloat16."""


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
    """run_sft.py that measures pass@k on its way, sampled from the model in training: one with an
    adapter, and one with modules that are trained whole.
    """
    asked = (*_sft_flags(context), *_pass_at_k("hf"))
    _trained(context, "SFT that measures pass@k", "run_sft.py", *asked)
    _trained(context, "the same, whole modules", "run_sft.py", *asked, *WHOLE)


def pass_at_k_vllm(context: Context) -> None:
    """As pass_at_k, with vLLM beside the training: one engine that is kept, and with whole modules
    one for each measurement.
    """
    straight = context.run_of_sft()
    asked = (*_sft_flags(context), *_pass_at_k("vllm"))
    _trained(context, "vLLM beside SFT", "run_sft.py", *asked, like=straight)
    anew = (*WHOLE, "--use_persistent_vllm", "false")
    _trained(context, "an engine a measurement", "run_sft.py", *asked, *anew)


def unsloth(context: Context) -> None:
    """SFT that is sampled from, and DPO from it, in a home of its own: what trains does not change
    the name of a run.
    """
    _require_gpu(context)
    straight = context.run_of_sft()
    home = _home(context, "unsloth")
    flags = _sft_flags(context, UNSLOTH)
    sampled = ("--do_inference", "--do_evaluation", "--prompts", 32, "--backend", "hf")
    _trained(context, "SFT", "run_sft.py", *flags, *sampled, home=home, like=straight)
    _trained(context, "DPO", "run_dpo.py", *_preference(context, "dpo", UNSLOTH), home=home)


def unsloth_pass_at_k(context: Context) -> None:
    """SFT by unsloth, with vLLM beside it in the same process."""
    _require_gpu(context)
    straight = context.run_of_sft()
    home = _home(context, "unsloth_pass_at_k")
    flags = _sft_flags(context, UNSLOTH)
    asked = (*flags, *_pass_at_k("vllm"))
    _trained(context, "vLLM beside SFT", "run_sft.py", *asked, home=home, like=straight)


def unsloth_four_bit(context: Context) -> None:
    """SFT over a base in 4 bits, opened by unsloth."""
    _require_gpu(context)
    home = _home(context, "unsloth_four_bit")
    flags = _sft_flags(context, UNSLOTH)
    _trained(context, "SFT in 4 bits", "run_sft.py", *flags, "--load_in_4bit", home=home)


def sft_engine(context: Context) -> None:
    """run_sft.py --trainer engine: packed examples, all weights."""
    flags = ("--trainer", "engine", "--learning_rate", "1e-4")
    _trained(context, "SFT on the engine", "run_sft.py", *_sft_flags(context), *flags)


def dpo(context: Context) -> None:
    """run_dpo.py, from the run of SFT: its adapter is trained further, a copy is the reference."""
    _trained(context, "DPO", "run_dpo.py", *_preference(context, "dpo"))


def kto(context: Context) -> None:
    """run_dpo.py --pft_method kto, from the run of SFT."""
    _trained(context, "KTO", "run_dpo.py", *_preference(context, "kto"))


def grpo(context: Context) -> None:
    """run_dpo.py --pft_method grpo, from the base, embedding and head trained whole."""
    flags = ("--pft_method", "grpo", "--train_size", context.sizes["grpo"], *TRANSFORMERS)
    _trained(context, "GRPO", "run_dpo.py", *_data(), *flags, *WHOLE, "--do_training")


def sft_resume(context: Context) -> None:
    """SFT in a home of its own gets SIGTERM, goes on, and ends beside the one of the step sft."""
    began = time.monotonic()
    straight = context.run_of_sft()
    home = _home(context, "again")
    step = _interrupted(context, home)
    context.entry("run_sft.py", *_sft_flags(context), home=home)
    run = _newest(home, set())
    _require_whole(run)
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    if steps != list(range(1, len(steps) + 1)):
        raise Failed(f"the steps of the resumed run's metrics.jsonl are {steps}")
    far = _furthest(straight.path / "model", run.path / "model")
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


def _sft_flags(context: Context, trained_by: tuple[str, ...] = TRANSFORMERS) -> tuple[object, ...]:
    return (*_data(), "--train_size", context.sizes["sft"], "--do_training", *trained_by)


def _preference(
    context: Context, name: str, trained_by: tuple[str, ...] = TRANSFORMERS
) -> tuple[object, ...]:
    """The flags of run_dpo.py for a method that starts from the run of SFT."""
    flags = ("--pft_method", name, "--train_size", context.sizes[name], *trained_by)
    return (*_data(), *flags, "--sft_train_size", context.sizes["sft"], "--do_training")


def _pass_at_k(backend: str) -> tuple[str, ...]:
    every = ("--pass_at_k_targets", "0.1", "0.9", "--pass_at_k_every", "16")
    share = ("--vllm_gpu_memory_utilization", "0.15") if backend == "vllm" else ()
    return (*every, "--pass_at_k_backend", backend, *share)


def _require_gpu(context: Context) -> None:
    if context.device != "cuda":
        raise Failed("unsloth needs a GPU", SKIPPED)


def _home(context: Context, name: str) -> Path:
    """A home of a step's own, with the model that it starts from."""
    home = context.folder / name
    shutil.copytree(context.home / "models" / MODEL, home / "models" / MODEL)
    return home


def _trained(
    context: Context,
    what: str,
    script: str,
    *flags: object,
    home: Path | None = None,
    like: RunDirectory | None = None,
) -> None:
    """A row of a training: the run directory is whole, its losses are finite, and near those of the
    run that it is to be like; how fast it was.
    """
    home = home or context.home
    before = {path.name for path in (home / "models").glob("*")}
    seconds = context.entry(script, *flags, home=home)
    run = _newest(home, before)
    _require_whole(run)
    found = _figures(run)
    well = math.isfinite(found["first_loss"]) and math.isfinite(found["last_loss"])
    device = run.result.get("device")
    beside = ""
    if like is not None:
        there = _figures(like)
        far = max(abs(found[name] - there[name]) for name in ("first_loss", "last_loss"))
        well = well and far <= NEAR
        beside = f"; losses of {like.name} are off by {far:.1e}"
    context.say(
        what,
        OK if well and device == context.device else FAILED,
        f"{found['rate']:,.1f} {found['unit']}/s on {device}, loss {found['first_loss']:.3f} to "
        f"{found['last_loss']:.3f} in {found['steps']} steps, {run.name} is whole{beside}",
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
