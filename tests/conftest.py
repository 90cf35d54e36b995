"""What tests share: a TUNING_HOME of their own, the real command line, and `tiny`, trained once.

`tiny` here is the embedded model at test size: tests/collections.yaml gives it fewer steps and
smaller evaluations. Several pytest processes share one training through a lock on a folder.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import warm
from tests.logged import logged
from tuning.config import PACKAGE, DatasetEntry
from tuning.entry import QUIET
from tuning.runs import log

COLLECTIONS = Path(__file__).parent / "collections.yaml"
ARITH = DatasetEntry(name="arith", loader="arith")
LONGEST = (
    "test_kills", "test_random_plans", "test_phase", "test_experiment", "test_trl_processes",
    "test_pretrain", "test_joined", "test_warm", "test_engine_resume", "test_parallel",
    "test_instruction_experiment", "test_trainers_agree", "test_engine_sft", "test_methods",
    "test_artifacts", "test_report",
    "test_stopping_callbacks", "test_full", "test_air_gapped", "test_api", "test_gpu_smoke",
    "test_before_after", "test_prefetch", "test_stopping_pipelines", "test_search",
    "test_disturbances", "test_front_door", "test_scale", "test_standing",
)  # fmt: skip
"""The files that take longest, by name. The first one trains what others wait for; the second,
which begins beside it, is none of those.
"""
LEFT = ("TORCHINDUCTOR_", "ACCELERATE_", "WANDB_MODE", "HF_XET_", "KMP_", *QUIET)
"""Variables with these beginnings are set in a test process by what it imports, trains or runs;
with another one of them, a command would not be forked but started anew."""
MEMORY = Path("/dev/shm")
ENOUGH = 4 << 30


def environment(home: Path, collections: Path = COLLECTIONS) -> dict[str, str]:
    """The environment of a command at test size under `home`, without what a library has left."""
    return {k: v for k, v in os.environ.items() if not k.startswith(LEFT)} | {
        "TUNING_HOME": str(home),
        "TUNING_COLLECTIONS": str(collections),
        "OMP_NUM_THREADS": "1",
    }


def run_entry(
    home: Path,
    script: str,
    *flags: object,
    timeout: float = 600,
    collections: Path = COLLECTIONS,
) -> subprocess.CompletedProcess[str]:
    """Run an entry point of tuning/ to its end."""
    words = [str(PACKAGE / script), *map(str, flags)]
    return warm.run(words, environment(home, collections), home.anchor, timeout)


def run_script(
    home: Path, script: Path, *words: object, cwd: str | Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program of Python to its end."""
    return warm.run([str(script), *map(str, words)], environment(home), cwd, timeout)


def start_entry(home: Path, script: str, *flags: object, anew: bool = False) -> warm.Process:
    """An entry point of tuning/ in the background, unheard; `anew` is a real start in any case."""
    words = [str(PACKAGE / script), *map(str, flags)]
    return warm.start(words, environment(home), home.anchor, anew=anew)


Entry = Callable[..., subprocess.CompletedProcess[str]]


def torchrun(processes: int, *words: object) -> list[str]:
    """What follows `python` in a command that starts a program in several processes, which find
    each other by themselves. The processes are real starts.
    """
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return [*start, str(processes), *map(str, words)]


def check(
    done: subprocess.CompletedProcess[str], code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Fail with the output unless a command ended with `code`."""
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session", autouse=True)
def logging_is_configured() -> None:
    """What the project logs is printed, as its entry points have it."""
    log.configure()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the project's code logs in this test; warnings begin with `warning: `."""
    with logged() as lines:
        yield lines


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TUNING_HOME with `tiny`, pre-trained and evaluated; copy it, do not write to it."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
    home = shared / "trained-home"
    with (shared / "trained-home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "outputs/math/tiny/scores.json").exists():
            home.mkdir(exist_ok=True)
            check(run_entry(home, "run_pretrain.py", "--model", "tiny"))
            data = ("--model", "tiny", "--dataset", "arith", "--task", "math")
            check(run_entry(home, "run_inference.py", *data, "--do_inference", "--do_evaluation"))
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty TUNING_HOME."""
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def tiny_home(trained_home: Path, tmp_path: Path) -> Path:
    """A TUNING_HOME of this test's own that has `tiny`."""
    return copy_home(trained_home, tmp_path / "home")


def copy_home(source: Path, target: Path) -> Path:
    """The models of a TUNING_HOME in another one."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("lock.json", ".lock"))
    return target


def pytest_configure(config: pytest.Config) -> None:
    """Temporary files in memory, where there is enough.

    Runs are made safe against a crash of the machine by thousands of calls that wait for a disk.
    What a test leaves is removed unless it fails. SLURM's daemons keep to the disk.
    """
    slurm = any("slurm" in Path(argument).parts for argument in config.args)
    usable = not slurm and MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    if usable and shutil.disk_usage(MEMORY).free >= ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """Garbage is not looked for in all that libraries and tests are made of, which stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_unconfigure() -> None:
    warm.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process ends with one while the others have nothing."""
    places = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
