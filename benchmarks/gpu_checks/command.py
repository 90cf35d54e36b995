"""The command line of gpu_smoke.py, and the process of a step."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import rows, site
from benchmarks.gpu_checks.runner import Command, Report, carry_out
from benchmarks.gpu_checks.steps import STEPS, Step

BUDGET = 480.0
PROBE = 60.0
"""Seconds to find out whether there is a GPU."""
PROGRAM = str(Path(__file__).resolve().parents[1] / "gpu_smoke.py")


def main(words: Sequence[str]) -> int:
    """Run the steps, or, as `--step`, one of them; returns the exit code."""
    if words[:1] == ["--step"]:
        _, name, device, folder, file = words
        os.environ.update(site.QUIET)
        return one(STEPS[name], site.Context(STEPS[name].name, device, Path(folder), Path(file)))
    began = time.monotonic()
    args = _parser().parse_args(words)
    args.budget = args.budget or BUDGET * _slower(args.device)
    if args.device == "cuda" and (none := _without_gpu()):
        print(f"{none}; --device cpu shows, at a small size, that this program runs")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="gpu_smoke_") as made:
        folder = args.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        return _report(args, folder, args.budget - (time.monotonic() - began))


def _report(args: argparse.Namespace, folder: Path, budget: float) -> int:
    """Run the steps that are asked for in `budget` seconds, and print the table."""
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": args.device,
        "budget_s": args.budget,
    }
    report = Report(args.output, about)
    site.prepare(folder, args.device)
    commands = [_command(step, args.device, folder) for step in _asked(args.steps)]
    try:
        carry_out(commands, budget, folder, site.environment(folder, args.device), report)
        report.write(complete=True)
    finally:
        print(f"\n{args.device}, {about['date'][:10]}\n{report.table()}", flush=True)
    return 0 if report.well else 1


def _asked(names: Sequence[str] | None) -> list[Step]:
    """The steps by their names, and the one that makes the model that they start from."""
    chosen = set(names or STEPS)
    if any(STEPS[name].needs for name in chosen):
        chosen.add("base")
    return [step for name, step in STEPS.items() if name in chosen]


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gpu_smoke.py", description="see the top of this file")
    made.add_argument("--output", type=Path, help="a JSON file for the rows")
    made.add_argument("--budget", type=float, help=f"seconds in all (default: {BUDGET:.0f})")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    made.add_argument(
        "--steps", nargs="+", choices=list(STEPS), metavar="STEP", help=", ".join(STEPS)
    )
    made.add_argument("--folder", type=_empty, help="for models and logs (default: none are kept)")
    return made


def _empty(text: str) -> Path:
    """A folder in which there is nothing: steps tell what they made from what was there."""
    path = Path(text).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"'{text}' is not an empty folder; give another")
    return path


def _without_gpu() -> str | None:
    """Why there is no GPU to use; asked in a process of its own, which may crash or hang."""
    asked = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'torch finds no GPU')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", asked],
            capture_output=True,
            text=True,
            timeout=PROBE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"torch did not say within {PROBE:.0f} s whether there is a GPU"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"torch ended with {done.returncode}"])[-1]


def _command(step: Step, device: str, folder: Path) -> Command:
    words = [sys.executable, PROGRAM, "--step", step.name, device, str(folder)]
    return Command(name=step.name, words=words, limit=step.limit * _slower(device))


def _slower(device: str) -> int:
    """How much longer limits are, and the budget: without a GPU imports wait for a busy core."""
    return 3 if device == "cpu" else 1


def one(step: Step, context: site.Context) -> int:
    """Run a step in this process; returns the exit code."""
    missing = [package for package in step.packages if find_spec(package) is None]
    if missing:
        context.say("", rows.SKIPPED, f"needs {', '.join(missing)}, which is not installed")
        return 0
    if step.needs and not (context.home / "models" / step.needs / "model").is_dir():
        context.say("", rows.SKIPPED, f"needs the model that the step base makes ({step.needs})")
        return 0
    module, _, name = step.runs.partition(":")
    function: Any = getattr(importlib.import_module(f"benchmarks.gpu_checks.{module}"), name)
    began = time.monotonic()
    try:
        function(context)
    except site.Failed as failure:
        context.say("", failure.status, str(failure), time.monotonic() - began)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("tuning", "benchmarks"):
            raise
        context.say("", rows.SKIPPED, f"needs {error.name}, which is not installed")
    return 0
