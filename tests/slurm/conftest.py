"""A real SLURM for the tests: two nodes on this machine, and the front door in front of it.

On a machine without SLURM these tests are skipped with the reason; where TUNING_REQUIRE_SLURM is
set they fail instead.
"""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COLLECTIONS, check, copy_home, run_entry
from tests.slurm.cluster import Cluster, missing, running
from tuning.config import CHECKOUT

CLUSTER = Path(__file__).parent / "cluster.yaml"
GONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, up for the whole session."""
    reason = missing()
    if reason is not None:
        if os.environ.get("TUNING_REQUIRE_SLURM"):
            pytest.fail(f"no SLURM here: {reason}")
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("slurm")) as found:
        yield found


SBATCH = """#!/bin/sh
case " $* " in *" --test-only "*) exec {sbatch} "$@" ;; esac
echo "$@" >> "$SBATCH_CALLS"
{after}
exec {sbatch} "$@"
"""


@dataclass
class Site:
    """A user on the cluster: a TUNING_HOME, a checkout, and what they type."""

    cluster: Cluster
    home: Path
    checkout: Path = CHECKOUT
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bin = self.home.parent / f"{self.home.name}-bin"
        self.bin.mkdir(exist_ok=True)
        self.calls_file = self.bin / "calls"
        self.calls_file.touch()
        self.wrap_sbatch()
        self.before: set[str] = set()
        self.before = set(self.jobs())

    def wrap_sbatch(self, after: str = "") -> None:
        """Count the calls of sbatch that submit; `after` is shell that runs between the two."""
        wrapper = self.bin / "sbatch"
        wrapper.write_text(SBATCH.format(sbatch="/usr/bin/sbatch", after=after))
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)

    @property
    def sbatch_calls(self) -> int:
        """How often sbatch was called to submit something."""
        return len(self.calls_file.read_text().splitlines())

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.environment | {
            "TUNING_HOME": str(self.home),
            "TUNING_COLLECTIONS": str(COLLECTIONS),
            "TUNING_CLUSTER": str(CLUSTER),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SBATCH_CALLS": str(self.calls_file),
            "PYTHON": sys.executable,
            "TUNING_PYTHON": sys.executable,
            "PYTHONPATH": str(self.checkout),
            **self.variables,
        }

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; it must end with `code`."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True,
            check=False, timeout=300, cwd=self.checkout,
        )  # fmt: skip
        return check(done, code)

    def tuning(self, *words: object, code: int = 0) -> str:
        """`tuning ...`; what it printed."""
        return self.run(sys.executable, "-m", "tuning.cli", *words, code=code).stdout

    def pipeline(self, *flags: object, code: int = 0) -> str:
        """The sweetspot pipeline; what it printed."""
        script = self.checkout / "tuning" / "run_sweetspot_pipeline.py"
        return self.run(sys.executable, script, *flags, code=code).stdout

    def by_hand(self, *words: object) -> str:
        """`sbatch ...`; the job id. What it prints goes to slurm-ID.out beside the home."""
        output = self.home.parent / "slurm-%j.out"
        return self.run("sbatch", "--parsable", "-o", output, *words).stdout.strip()

    def entry(self, script: str, *flags: object, code: int = 0) -> str:
        """An entry point, here and now."""
        return check(run_entry(self.home, script, *flags), code).stdout

    def status(self, experiment: str | None = None) -> dict[str, dict[str, str]]:
        """{stage: its row}, as `tuning status --json` gives it."""
        words = [experiment] if experiment else []
        return {row["stage"]: row for row in json.loads(self.tuning("status", *words, "--json"))}

    def jobs(self) -> dict[str, str]:
        """{job: state} of everything that came after this site."""
        lines = self.cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        found = dict(line.split() for line in lines)
        return {job: state for job, state in found.items() if job not in self.before}

    def wait_idle(self, seconds: float = 240) -> None:
        """Until nothing is queued or running."""
        wait_for(lambda: set(self.jobs().values()) <= set(GONE), seconds, self.queue)

    def queue(self) -> str:
        """What squeue shows, for messages."""
        return self.cluster.run("squeue", "-r")

    def state(self, job: str) -> str:
        """The state of a job."""
        found = self.cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split()
        return found[0] if found else ""

    def report(self, experiment: str) -> list[dict[str, str]]:
        """results.csv without times."""
        path = self.home / "outputs/reports" / experiment / "results.csv"
        with path.open() as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def wait_for(
    holds: Callable[[], Any], seconds: float = 60, say: Callable[[], object] = lambda: ""
) -> Any:
    """Until `holds()` is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.2)
    pytest.fail(f"did not happen within {seconds:g} s: {say()}")


@pytest.fixture
def make_site(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """A maker of sites; `source` is a home that is copied. What a test leaves is cancelled."""

    def make(source: Path | None = None, name: str = "home", **more: Any) -> Site:
        home = tmp_path / name
        if source is None:
            home.mkdir()
        else:
            copy_home(source, home)
        return Site(cluster, home, **more)

    yield make
    cluster.run("scancel", "-u", "root", check=False)
    wait_for(lambda: not cluster.run("squeue", "-h"), 60, lambda: cluster.run("squeue"))


@pytest.fixture
def user(make_site: Callable[..., Site], trained_home: Path) -> Site:
    """A user whose home has `tiny`."""
    return make_site(trained_home)
