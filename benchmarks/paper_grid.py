"""A grid of the size of a paper: seconds to plan it, the trainings that sharing saves, and how long
its report takes to write and to open.

    PYTHONPATH=. python benchmarks/paper_grid.py [--keep FOLDER] [--picture FILE.png]

7 shares of SFT x 5 budgets x 2 methods x 3 seeds of one base model. Nothing is trained: the run
directories are written through the real classes with scores from a simulated surface, whose best
share of SFT falls as the budget grows, with differences between seeds and between prompts. The page
is opened in headless Chromium (Debian: chromium), from the start of the process to the end of its
load event, three times; the time of an empty page is given beside it, since that is Chromium's own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRID: dict[str, Any] = {
    "sft_ratios": ("0", "0.01", "0.1", "0.25", "0.5", "0.75", "1"),
    "train_sizes": (500, 1000, 2000, 5000, 10_000),
    "pft_methods": ("dpo", "kto"),
    "n_seeds": 3,
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
STARTS = 3
EMPTY = "<!doctype html><title>empty</title>"


def surface(share: float, size: int, method: str | None) -> float:
    """pass@1 that a split has on average: preference tuning alone starts cold, and gains on SFT as
    the budget grows.
    """
    sft = 0.10 + 0.42 * (1 - math.exp(-size * share / 1800))
    lift = {"dpo": 0.16, "kto": 0.13}.get(method or "", 0.0)
    warm = 1 - math.exp(-share * size / 60)
    tuned = lift * (1 - math.exp(-size * (1 - share) / 3000)) * (0.15 + 0.85 * warm)
    return sft + tuned - 0.05 * (share == 0)


def simulated(plan: Any) -> dict[str, float]:
    """pass@1 of every stage, by its name, with a standard deviation of 0.012 between seeds."""
    scores = {}
    for stage in plan.stages:
        if stage.role == "base":
            scores[stage.name] = 0.08
        elif stage.total_data is not None:
            taken = {"reference_sft": stage.total_data, "reference_pt": 0}.get(
                stage.role, stage.total_data - (stage.train_size or 0)
            )
            level = surface(taken / stage.total_data, stage.total_data, stage.pft_method)
            scores[stage.name] = level + random.Random(stage.name).gauss(0, 0.012)
    return scores


@contextlib.contextmanager
def home(keep: str | None) -> Iterator[Path]:
    """A TUNING_HOME that is deleted, unless it is to be kept."""
    with contextlib.ExitStack() as stack:
        folder = keep or stack.enter_context(tempfile.TemporaryDirectory())
        os.environ["TUNING_HOME"] = folder
        yield Path(folder)


def opened(browser: str, page: Path, *more: str) -> float:
    """Seconds from the start of the browser to the end of the page's load event."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-extensions",
        ]
        command += [f"--user-data-dir={profile}", *(more or ("--dump-dom",)), page.as_uri()]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{browser} failed: {done.stderr.decode()[-500:]}")
    return seconds


Times = tuple[float, float]
"""Seconds on the clock, and of this process's CPU time."""


def now() -> Times:
    """The present, on both clocks."""
    return time.perf_counter(), time.process_time()


def since(start: Times) -> Times:
    """What passed on both clocks."""
    clock, cpu = now()
    return clock - start[0], cpu - start[1]


def planned() -> tuple[Any, list[str], Times]:
    """The plan, its notes, and the median of the seconds that planning took."""
    from tests.report.fake_experiment import budget
    from tuning.experiments.budget import budget_plan

    took = []
    for _ in range(STARTS):
        start = now()
        plan, notes = budget_plan(budget(**GRID))
        took.append(since(start))
    return plan, notes, sorted(took)[STARTS // 2]


def line(name: str, value: str) -> None:
    """A row of the table."""
    print(f"{name:<44} {value:>16}", flush=True)


def in_browser(page: Path, picture: str | None) -> None:
    """The rows about opening the page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"not opened: none of {', '.join(BROWSERS)} is installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.html"
        empty.write_text(EMPTY)
        took = [(opened(browser, empty), opened(browser, page)) for _ in range(STARTS)]
    without, with_page = (statistics.median(column) for column in zip(*took, strict=True))
    line("opened in headless Chromium, s", f"{with_page:.2f}")
    line("of which an empty page takes, s", f"{without:.2f}")
    if picture:
        tall = ("--window-size=1200,12000", "--hide-scrollbars", f"--screenshot={picture}")
        opened(browser, page, *tall)
        line("picture", picture)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", metavar="FOLDER", help="write there, and leave it")
    parser.add_argument("--picture", metavar="FILE.png", help="a picture of the page")
    args = parser.parse_args()
    with home(args.keep) as folder:
        from tests.report.fake_experiment import Fake
        from tuning.report.build import write_report
        from tuning.runs import provenance

        plan, notes, seconds = planned()
        line("stages", str(len(plan.stages)))
        line("planned, s (of CPU time)", "{:.2f} ({:.2f})".format(*seconds))
        print("\n".join(note for note in notes if "saved" in note))
        provenance.collect = functools.cache(provenance.collect)
        Fake(home=folder, plan=plan, scores=simulated(plan)).write()
        start = now()
        told = write_report(plan, folder)
        line("report written, s (of CPU time)", "{:.2f} ({:.2f})".format(*since(start)))
        page = Path(told.rsplit("report: ", 1)[1])
        line("its size, kB", f"{page.stat().st_size / 1000:,.0f}")
        in_browser(page, args.picture)


if __name__ == "__main__":
    main()
