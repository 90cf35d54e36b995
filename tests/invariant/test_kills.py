"""Whatever is killed at any moment continues when started again, and ends with the same results.

One plan, with SFT, a sweetspot, and forks by DPO and KTO, is run undisturbed and then under fire:
in each of the three trainings SIGTERM and SIGKILL of the launcher, of the supervisor and of the
stage process, at moments and in an order drawn from a seed that is printed.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import copy_home, environment
from tuning.config import PACKAGE

FLAGS = (
    "--model", "tiny", "--dataset", "arith", "--task", "math",
    "--total_data", "240", "--sft_data", "160", "--perplexity_thresholds", "5.0",
    "--pft_method", "dpo", "kto", "--no_early_stop", "--no_references",
    "--do_sft", "--do_dpo", "--do_inference", "--do_evaluation", "--experiment", "fire",
    "--max_parallel", "1",
)  # fmt: skip
TARGETS = ("launcher", "supervisor", "stage")
ROLES = ("sft", "dpo", "kto")
TIMES = ("train_seconds", "total_seconds")


def start(home: Path, log: Path) -> warm.Process:
    """The pipeline in the background."""
    words = [str(PACKAGE / "run_sweetspot_pipeline.py"), *FLAGS]
    with log.open("ab") as file:
        return warm.start(words, environment(home), home, stdout=file, stderr=file)


def finish(home: Path, log: Path) -> None:
    """Start the plan again until it is done; a stage that stopped without progress may take two."""
    for _ in range(3):
        if start(home, log).wait(timeout=600) == 0:
            return
    pytest.fail(log.read_text()[-4000:])


def results(home: Path) -> list[dict[str, str]]:
    """results.csv without times."""
    with (home / "outputs/reports/fire/results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an experiment that nobody disturbed."""
    home = copy_home(trained_home, tmp_path_factory.mktemp("undisturbed") / "home")
    finish(home, home.parent / "log.txt")
    return home


def progress_of(home: Path, launcher: int, role: str) -> tuple[str, int, Path]:
    """Phase, position and run directory of the stage of a launcher that trains by `role`."""
    found = [
        path
        for path in (home / "outputs/reports/fire/stages" / str(launcher)).glob("*.json")
        if f"_{role}-arith" in path.name and "sweetspot-ppl" not in path.name.partition(role)[2]
    ]
    for path in sorted(found, key=_written, reverse=True):
        with contextlib.suppress(OSError, json.JSONDecodeError):
            told = json.loads(path.read_text())
            return told["phase"], told["at"], Path(told["directory"])
    return "", 0, home


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def victim(launcher: int, target: str, run: Path) -> int | None:
    """The process to aim at: the launcher, or the supervisor or process of the stage of a run."""
    if target == "launcher":
        return launcher
    with contextlib.suppress(OSError, json.JSONDecodeError):  # the stage may have ended
        stage = int(json.loads((run / "lock.json").read_text())["pid"])
        supervisor = warm.parent_of(stage)
        if warm.parent_of(supervisor) == launcher:
            return supervisor if target == "supervisor" else stage
    return None


class Fire:
    """One experiment under fire: signals at moments, and a launcher that is started when there is
    none.
    """

    def __init__(self, home: Path, log: Path) -> None:
        self.home = home
        self.log = log
        self.launcher = start(home, log)
        self.struck = 0

    def strike(self, number: signal.Signals, target: str, role: str, step: int) -> None:
        """Send a signal once the run by `role` has trained `step` steps; nothing if it is over."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.launcher.poll() is not None:
                if self.launcher.returncode == 0:
                    return
                self.launcher = start(self.home, self.log)
            phase, at, run = progress_of(self.home, self.launcher.pid, role)
            if (phase == "train" and at >= step) or phase in ("infer", "evaluate"):
                aim = victim(self.launcher.pid, target, run)
                if aim is not None:
                    os.kill(aim, number)
                    self.struck += 1
                    break
            time.sleep(0.02)
        if target == "launcher":
            code = self.launcher.wait(timeout=120)
            assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)

    def cease(self) -> None:
        """Let the experiment come to its end."""
        if self.launcher.wait(timeout=600) != 0:
            finish(self.home, self.log)


def test_results_are_those_of_an_undisturbed_run(
    undisturbed: Path, trained_home: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("TUNING_TEST_SEED") or random.SystemRandom().randrange(10**6))
    rng = random.Random(seed)
    fire = Fire(copy_home(trained_home, tmp_path / "home"), tmp_path / "log.txt")
    print(f"TUNING_TEST_SEED={seed}")
    for role in ROLES:
        strikes = list(itertools.product((signal.SIGTERM, signal.SIGKILL), TARGETS))
        rng.shuffle(strikes)
        steps = sorted(rng.sample(range(1, 16), len(strikes)))
        for step, (number, target) in zip(steps, strikes, strict=True):
            print(f"{number.name} to the {target} at step {step} of {role}")
            fire.strike(number, target, role, step)
    fire.cease()
    assert fire.struck == 18, fire.log.read_text()[-4000:]
    assert results(fire.home) == results(undisturbed)
