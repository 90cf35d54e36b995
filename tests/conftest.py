"""What tests share: a TUNING_HOME of their own, the real command line, and `tiny`, trained once.

`tiny` here is the embedded model at test size: tests/collections.yaml gives it fewer steps and
smaller evaluations. Several pytest processes share one training through a lock on a folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tuning.config import PACKAGE, DatasetEntry
from tuning.runs import log

COLLECTIONS = Path(__file__).parent / "collections.yaml"
ARITH = DatasetEntry(name="arith", loader="arith")


def environment(home: Path) -> dict[str, str]:
    """The environment of a command at test size under `home`."""
    return os.environ | {
        "TUNING_HOME": str(home),
        "TUNING_COLLECTIONS": str(COLLECTIONS),
        "OMP_NUM_THREADS": "1",
    }


def run_entry(
    home: Path, script: str, *flags: object, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run an entry point of tuning/ to its end."""
    return subprocess.run(
        [sys.executable, str(PACKAGE / script), *map(str, flags)],
        env=environment(home), capture_output=True, text=True, timeout=timeout, check=False,
        cwd=home.anchor,
    )  # fmt: skip


Entry = Callable[..., subprocess.CompletedProcess[str]]


def torchrun(processes: int, *words: object) -> list[str]:
    """A command that starts a program in several processes, which find each other by themselves."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return [*start, str(processes), *map(str, words)]


def check(
    done: subprocess.CompletedProcess[str], code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Fail with the output unless a command ended with `code`."""
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session", autouse=True)
def logged() -> None:
    """What the project's code logs is shown, as its entry points show it."""
    log.configure()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the project's code logs in this test; warnings begin with `warning: `."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            mark = "warning: " if record.levelno >= logging.WARNING else ""
            messages.append(mark + record.getMessage())

    handler = Handler()
    log.logger.addHandler(handler)
    yield messages
    log.logger.removeHandler(handler)


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that it runs beside all the others and not after them."""
    items.sort(key=lambda item: "test_kills" not in item.nodeid)
