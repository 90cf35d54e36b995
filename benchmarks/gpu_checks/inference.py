"""Answers a second: the Hugging Face engine at several batch sizes, and vLLM where it is there."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from benchmarks.gpu_checks.rows import FAILED, OK
from benchmarks.gpu_checks.site import DATA, MODEL, Context, Failed
from tuning.runs.rundir import RunDirectory, read_lines

BATCHES = {"cuda": (8, 64, 256), "cpu": (2, 8)}
"""Prompts of a batch; each gets several answers."""
SHARE = ("--gpu_memory_utilization", "0.25")
"""For vLLM; the model is small."""
SAME = 0.9
"""Share of likeliest answers that two engines must have in common: in bfloat16, two tokens that are
about as likely can change places, and all that follows with them."""


def hf(context: Context) -> None:
    """run_inference.py once, and then its engine by itself at each batch size."""
    _entry(context, "run_inference.py, hf", "hf")
    from tuning import run_inference
    from tuning.inference.generator import opened
    from tuning.phases.evaluate import artifact_to_evaluate
    from tuning.weights.base import require_base

    flags = ["--model", MODEL, *DATA, "--backend", "hf", "--do_inference"]
    work = run_inference.described(run_inference.parser().parse_args(flags))
    evaluation = work.evaluation
    assert evaluation is not None
    require_base(evaluation.base)
    with opened("hf", artifact_to_evaluate(evaluation)) as generator:
        for size in BATCHES[context.device]:
            _batch(context, generator, evaluation, size)


def _batch(context: Context, generator: Any, evaluation: Any, size: int) -> None:
    """One batch, twice: how fast, and whether the same seed gives the same answers."""
    began = time.monotonic()
    sampling = replace(evaluation.sampling, batch_size=size, prompts=size)
    prompts = [row["prompt"] for row in evaluation.data.rows("test", size)]
    generator.generate(prompts[:1], sampling, evaluation.hash, 0)
    started = time.perf_counter()
    answers = generator.generate(prompts, sampling, evaluation.hash, 0)
    seconds = time.perf_counter() - started
    same = answers == generator.generate(prompts, sampling, evaluation.hash, 0)
    flat = [answer for several in answers for answer in several]
    tokens = sum(map(len, generator.tokenizer(flat, add_special_tokens=False)["input_ids"]))
    dtype = str(generator.model.dtype).removeprefix("torch.")
    device = generator.model.device.type
    context.say(
        f"{size} prompts a batch",
        OK if tokens and device == context.device else FAILED,
        f"{tokens / seconds:,.0f} tokens/s, {len(flat)} answers of {tokens / len(flat):.0f} tokens "
        f"on {device} in {dtype}; again {'the same' if same else 'NOT the same'} answers",
        time.monotonic() - began,
        tokens_per_second=tokens / seconds,
        answers=len(flat),
        repeatable=same,
        dtype=dtype,
    )


def vllm(context: Context) -> None:
    """run_inference.py --backend vllm: compiled, with CUDA graphs, as is the default."""
    _entry(context, "run_inference.py, vllm", "vllm", *SHARE)


def adapter(context: Context) -> None:
    """The likeliest answers of the run of SFT: vLLM serves its adapter over the base, and once gets
    both merged; transformers has the adapter as peft has it.
    """
    run = context.run_of_sft().name
    greedy = ("--n_samples", "1", "--k_values", "1", "--temperature", "0", "--enforce_eager")
    ways = {
        "hf": ("hf",),
        "vLLM": ("vllm", *SHARE),
        "vLLM, merged": ("vllm", *SHARE, "--merge_adapter"),
    }
    answers: dict[str, list[str]] = {}
    for name, (backend, *more) in ways.items():
        lines = _entry(context, name, backend, *greedy, *more, model=("--run", run))
        answers[name] = [line["responses"][0] for line in lines]
    reference = answers.pop("hf")
    for name, other in answers.items():
        same = sum(a == b for a, b in zip(reference, other, strict=True)) / len(reference)
        context.say(
            f"{name} and hf",
            OK if same >= SAME else FAILED,
            f"{same:.1%} of {len(reference)} likeliest answers are equal, {SAME:.0%} must be",
            same=same,
        )


def _entry(
    context: Context,
    what: str,
    backend: str,
    *more: str,
    model: tuple[str, str] = ("--model", MODEL),
) -> list[dict[str, Any]]:
    """A row of run_inference.py: every prompt has its answers, and they have scores. Returns the
    lines of responses.jsonl.
    """
    prompts = context.sizes["prompts"]
    root = context.home / "outputs" / "math"
    before = {path.name for path in root.glob("*")}
    flags = ("--backend", backend, "--prompts", prompts, "--do_inference", "--do_evaluation")
    seconds = context.entry("run_inference.py", *model, *DATA, *flags, *more)
    made = [path for path in root.glob("*") if path.name not in before]
    if len(made) != 1:
        raise Failed(f"{len(made)} evaluations were written, not 1")
    lines = read_lines(made[0] / "responses.jsonl")
    scored = (made[0] / "scores.json").exists() and RunDirectory(made[0]).done("infer")
    answers = sum(len(line["responses"]) for line in lines)
    context.say(
        what,
        OK if len(lines) == prompts and scored else FAILED,
        f"{len(lines)} prompts, {answers} answers, scored, in {seconds:.1f} s with the start",
        seconds,
        answers=answers,
    )
    return lines
