"""run_autotune.py: what a search finds, and how far the estimate of memory was from the peaks."""

from __future__ import annotations

import time

from benchmarks.gpu_checks.rows import FAILED, OK
from benchmarks.gpu_checks.site import DATA, MODEL, Context

_SEARCH = ("--max_iterations", "4", "--profile_steps", "8")
_PRETRAIN = {
    "cuda": ("--preset", "gpt-0.25b", "--seq_len", "2048", "--total_batch_size", "65536"),
    "cpu": ("--preset", "tiny", "--seq_len", "64", "--total_batch_size", "512"),
}


def run(context: Context) -> None:
    """SFT with TRL on the model of the step base, and pre-training from scratch."""
    sft = ("--model", MODEL, *DATA, "--train_size", str(context.sizes["sft"]))
    pretrain = (*_PRETRAIN[context.device], "--use_mock_data", "--max_steps", "100")
    for kind, flags, seconds in (("sft", sft, 45), ("pretrain", pretrain, 60)):
        _row(context, kind, *flags, *_SEARCH, "--time_budget", str(seconds))


def _row(context: Context, kind: str, *flags: str) -> None:
    from tuning import run_autotune
    from tuning.autotune import phase
    from tuning.autotune.choice import table, winner_of

    began = time.monotonic()
    config = run_autotune.described(kind, run_autotune.parser(kind).parse_args(flags))
    found = phase.choose(config, lambda _at, _of, _note: None)
    with context.log.open("a", encoding="utf-8") as log:
        log.write(table(found) + "\n")
    tried = [o for o in found.observations if o.ok]
    first, winner = found.observations[0], winner_of(found.choice)
    best = next((o for o in tried if o.candidate == winner), None)
    errors = {
        str(o.candidate): found.expected[o.candidate].peak_bytes / o.peak_bytes - 1.0
        for o in tried
        if o.peak_bytes and o.candidate in found.expected
    }
    speed = ""
    if best and best.step and first.step:
        speed = f", {first.step / best.step:.2f} x the speed of the run's own settings"
    context.say(
        kind,
        OK if best else FAILED,
        f"winner {winner}{speed}; {len(tried)} of {len(found.observations)} trials ok; memory "
        f"estimated against measured: {', '.join(f'{c} {e:+.0%}' for c, e in errors.items())}",
        time.monotonic() - began,
        trials=[o.to_json() for o in found.observations],
        memory_errors=errors,
    )
