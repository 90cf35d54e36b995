"""The command line of gpu_smoke.py, and the process of a step."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
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
PROGRAM = str(Path(__file__).resolve().parents[1] / "gpu_smoke.py")


def main(words: Sequence[str]) -> int:
    """Run the steps, or, as `--step`, one of them; returns the exit code."""
    if words[:1] == ["--step"]:
        _, name, device, folder, file = words
        return one(STEPS[name], site.Context(STEPS[name].name, device, Path(folder), Path(file)))
    args = _parser().parse_args(words)
    device = args.device if args.device != "auto" else _found_device()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "budget_s": args.budget,
    }
    output = Path(args.output).resolve() if args.output else None
    with tempfile.TemporaryDirectory(prefix="gpu_smoke_") as made:
        folder = Path(args.folder).resolve() if args.folder else Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        report = Report(output, about)
        site.prepare(folder, device)
        try:
            commands = [_command(STEPS[name], device, folder) for name in args.steps or STEPS]
            carry_out(commands, args.budget, folder, site.environment(folder, device), report)
            report.write(complete=True)
        finally:
            print(f"\n{device}, {about['date'][:10]}\n{report.table()}", flush=True)
    return 0 if report.well else 1


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gpu_smoke.py", description="see the top of this file")
    made.add_argument("--output", help="a JSON file for the rows")
    made.add_argument("--budget", type=float, default=BUDGET, help="seconds in all (default: 480)")
    made.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    made.add_argument("--steps", nargs="+", choices=list(STEPS), metavar="STEP", help=str([*STEPS]))
    made.add_argument("--folder", help="keep models and logs here (default: nothing is kept)")
    return made


def _found_device() -> str:
    """cuda where torch finds a GPU; asked in a process of its own, which may crash."""
    import subprocess

    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=False)
    return "cuda" if done.returncode == 0 else "cpu"


def _command(step: Step, device: str, folder: Path) -> Command:
    words = [sys.executable, PROGRAM, "--step", step.name, device, str(folder)]
    return Command(name=step.name, words=words, limit=step.limit)


def one(step: Step, context: site.Context) -> int:
    """Run a step in this process; returns the exit code."""
    os.environ.update(site.QUIET)
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
