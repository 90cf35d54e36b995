"""Several processes that train one stage together: how they end, how they are stopped, and how the
local launcher starts them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import check, environment
from tests.launchers.test_local import LAUNCH, Experiment
from tests.small_site import use
from tuning import config as site
from tuning.config import CHECKOUT
from tuning.launchers.local import LocalLauncher
from tuning.launchers.processes import MODULE
from tuning.runs import atomic, outcome
from tuning.runs.errors import UserError

WORKER = """
import os, sys, time
from pathlib import Path
from tuning import entry
from tuning.runs import interrupt, ranks
from tuning.runs.errors import Interrupted, UserError

def main():
    interrupt.install()
    Path(f"{sys.argv[1]}.{ranks.rank()}-of-{ranks.world_size()}").touch()
    BODY

entry.run(main)
"""


class Workers:
    """A script of a few lines that two processes run together."""

    def __init__(self, folder: Path, body: str, *flags: str) -> None:
        self.folder = folder
        script = folder / "worker.py"
        script.write_text(WORKER.replace("BODY", body))
        self.exit = folder / "exit"
        self.stop = folder / "stop"
        told = {
            "TUNING_PROCESSES": "2", "TUNING_EXIT": str(self.exit), "TUNING_STOP": str(self.stop),
            "TUNING_PARENT": str(os.getpid()), "PYTHONPATH": str(CHECKOUT),
        }  # fmt: skip
        words = ["-P", "-m", MODULE, str(script), str(folder / "rank"), *flags]
        self.process = warm.start(words, environment(folder) | told, folder)

    def wait_for_ranks(self) -> None:
        """Until both have begun."""
        wait(lambda: sorted(path.name for path in self.folder.glob("rank.*")) == [
            "rank.0-of-2", "rank.1-of-2",
        ])  # fmt: skip

    def end(self) -> tuple[int, outcome.Outcome | None]:
        """The exit code of the command, and the recorded outcome."""
        return self.process.wait(60), outcome.read(self.exit)


def wait(ready: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


STOPS = """
    for _ in range(1200):
        time.sleep(0.05)
        interrupt.check()
"""


LEFT = """
    while not interrupt.asked_to_stop():
        time.sleep(0.05)
    raise RuntimeError("connection closed by peer")
"""


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., Workers]]:
    started: list[Workers] = []

    def make(body: str, *flags: str) -> Workers:
        started.append(Workers(tmp_path, body.strip(), *flags))
        return started[-1]

    yield make
    for one in started:
        one.process.kill()
        one.process.wait(60)


@pytest.mark.parametrize(
    ("body", "code", "recorded"),
    [
        ("return 0", 0, outcome.Outcome(code=0)),
        ("raise UserError('no such model')", 1, outcome.Outcome(code=2, reason="no such model")),
        (
            "if ranks.rank() == 1: raise ValueError('shapes')\n" + STOPS, 1,
            outcome.Outcome(code=1, reason="ValueError: shapes"),
        ),
        (
            "if ranks.rank() == 1: os.kill(os.getpid(), 9)\n" + LEFT, 1,
            outcome.Outcome(code=-9),
        ),
        (
            "if ranks.rank() == 1: os.kill(os.getpid(), 11)\n" + LEFT, 1,
            outcome.Outcome(code=-11),
        ),
    ],
    ids=["done", "users-mistake", "one-fails", "killed", "crashed"],
)  # fmt: skip
def test_the_outcome_is_that_of_the_rank_that_failed_first(workers, body, code, recorded):
    assert workers(body).end() == (code, recorded)


def test_what_tuning_recorded_is_not_the_outcome_of_the_training(workers):
    """The ranks end without a word, as where they lose the lock of their directory."""
    one = workers('if "TUNING_TUNES_FOR" not in os.environ: os._exit(75)', "--autotune")
    assert one.end() == (1, None)


def test_the_stop_file_stops_every_rank(workers):
    one = workers(STOPS)
    one.wait_for_ranks()
    one.stop.touch()
    code, recorded = one.end()
    assert code == 1 and recorded is not None and recorded.code == 75


def test_the_ranks_stop_when_torchrun_is_killed(workers):
    one = workers(STOPS)
    one.wait_for_ranks()
    one.process.kill()
    wait(lambda: outcome.code_of(one.exit) == 75)


# the local launcher

TOGETHER = """
import json, os, sys, time
from pathlib import Path
from tuning import config as site, entry
from tuning.plan import read_stage
from tuning.runs import interrupt, ranks
from tuning.runs.rundir import Identity, claim

def main():
    interrupt.install()
    stage = read_stage(Path(sys.argv[sys.argv.index("--stage") + 1]))
    told = [ranks.rank(), ranks.world_size(), os.environ.get("CUDA_VISIBLE_DEVICES"),
            os.environ["OMP_NUM_THREADS"]]
    with open(stage.run["log"], "a") as file:
        file.write(json.dumps([time.time(), "start", stage.name, told]) + "\\n")
    total = 1
    if ranks.world_size() > 1:
        from torch import distributed, ones
        distributed.init_process_group("gloo")
        count = ones(1)
        distributed.all_reduce(count)
        total = int(count)
    assert total == ranks.world_size()
    for _ in range(int(stage.run["do"])):
        time.sleep(0.05)
        interrupt.check()
    if ranks.is_first():
        identity = Identity(
            run_name=stage.name, kind="x", hash=stage.hash, hashed={}, settings={}
        )
        with claim(site.models_dir(), identity) as directory, directory.phase("train"):
            pass
    if ranks.world_size() > 1:
        distributed.destroy_process_group()

entry.run(main)
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A plan whose stages tell which rank they are, of how many."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    use(monkeypatch, tmp_path)
    made = Experiment(tmp_path)
    made.script.write_text(TOGETHER)
    return made


class Launcher:
    """The local launcher in a process of its own, with two processes for what can be shared. It is
    given no OMP_NUM_THREADS, so that it gives each process its share of the cores.
    """

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        program, plan, self._said = (folder / name for name in ("launch.py", "plan.json", "said"))
        program.write_text("import os; del os.environ['OMP_NUM_THREADS']" + LAUNCH)
        atomic.write_json(plan, experiment.plan.to_json())
        given = environment(site.home(), folder / "collections.yaml")
        given |= {"PYTHONPATH": str(CHECKOUT)}
        with self._said.open("wb") as said:
            words = [str(program), str(plan), '{"processes": 2}']
            self.process = warm.start(words, given, folder, stdout=said)

    def end(self) -> tuple[int, dict[str, list[str]]]:
        """Its exit code, and [state, reason] of every stage."""
        return self.process.wait(100), json.loads(self._said.read_text())


def told(experiment: Experiment) -> dict[str, list[list]]:
    """{stage: [rank, world size, GPUs, threads] of each of its processes}."""
    found: dict[str, list[list]] = {}
    for _, _, name, what in experiment.lines:
        found.setdefault(name, []).append(what)
    return {name: sorted(entries) for name, entries in found.items()}


def test_what_trains_gets_the_processes_and_the_rest_one_each(experiment, tmp_path):
    """As a plan of SFT by the engine and with TRL has it."""
    experiment.add("engine", joinable=True, do=1)
    experiment.add("trl", do=1)
    experiment.add("evaluated", joinable=True, phases=("evaluate",), trains=False, do=1)
    code, ended = Launcher(tmp_path, experiment).end()
    assert (code, ended["engine"], ended["trl"]) == (0, ["done", ""], ["done", ""])
    cores = os.cpu_count() or 1
    share = str(max(1, cores // 2))
    assert told(experiment) == {
        "engine": [[0, 2, "", share], [1, 2, "", share]],
        "trl": [[0, 2, "", share], [1, 2, "", share]],
        "evaluated": [[0, 1, "", share]],
    }
    assert [line[2] for line in experiment.lines[:4]] == ["engine"] * 2 + ["trl"] * 2, (
        "alone, one after the other"
    )


def test_one_process_for_each_gpu_with_the_engine_unless_fewer_are_asked_for(
    experiment, tmp_path, monkeypatch
):
    """GPUs that this machine need not have: nothing here computes on one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    experiment.add("engine", joinable=True, do=1)
    experiment.add("trl", do=1)
    Launcher(tmp_path, experiment).end()
    found = told(experiment)
    assert [entry[:3] for entry in found["engine"]] == [[0, 2, "3,5"], [1, 2, "3,5"]]
    assert [entry[:3] for entry in found["trl"]] == [[0, 2, "3,5"], [1, 2, "3,5"]]
    launcher = LocalLauncher(experiment.plan)
    assert launcher._placement(experiment.stages[1]).devices == ("3",)
    assert launcher._placement(experiment.stages[0]).devices == ("3", "5", "6")
    assert launcher._placement(experiment.stages[0]).processes == 3
    with pytest.raises(UserError, match="processes is 4; each needs a GPU of its own, and this"):
        LocalLauncher(experiment.plan, processes=4)


@pytest.mark.parametrize("processes", [0, -1])
def test_a_number_of_processes_below_one_is_refused(experiment, processes):
    with pytest.raises(UserError, match=f"processes is {processes}; it must be at least 1"):
        LocalLauncher(experiment.plan, processes=processes)


def test_asked_to_stop_all_ranks_stop_and_the_next_launch_goes_on(experiment, tmp_path):
    experiment.add("engine", joinable=True, do=1200)
    launcher = Launcher(tmp_path, experiment)
    wait(lambda: len(told(experiment).get("engine", [])) == 2)
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.end() == (75, {"engine": ["pending", ""]})
    record = site.reports_dir() / "trial" / "stages" / "engine.json"
    assert atomic.read_json(record)["reason"] == "stopped on request"


def test_the_ranks_stop_when_the_launcher_is_killed(experiment, tmp_path):
    experiment.add("engine", joinable=True, do=1200)
    launcher = Launcher(tmp_path, experiment)
    wait(lambda: len(told(experiment).get("engine", [])) == 2)
    launcher.process.kill()
    record = site.reports_dir() / "trial" / "stages" / "engine.json"
    wait(lambda: atomic.read_json(record)["state"] == "pending")
    log = (site.reports_dir() / "trial" / "logs" / "engine.txt").read_text()
    assert log.count("everything is saved") == 2


def test_an_exit_code_and_its_reason_arrive(experiment, tmp_path):
    experiment.add("engine", joinable=True, do="2 * [")
    assert Launcher(tmp_path, experiment).end()[1]["engine"][0] == "failed"
    record = atomic.read_json(site.reports_dir() / "trial" / "stages" / "engine.json")
    assert record["reason"].startswith("ValueError: invalid literal for int()")
    assert (record["state"], record["code"]) == ("failed", 1)


# the real thing

GRID = """
model: tiny
dataset: arith
task: math
total_data: 64
sft_data: 32
perplexity_thresholds: 1.01
do_sft: true
no_references: true
grid: {trainer: [trl, engine]}
"""


def test_a_grid_of_both_trainers_here_gives_each_its_processes(tiny_home, tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    words = ("submit", tmp_path / "grid.yaml", "--launcher", "local", "--processes", "2")
    command = [str(site.PACKAGE / "cli.py"), *map(str, words)]
    hidden = environment(tiny_home) | {"CUDA_VISIBLE_DEVICES": ""}
    check(warm.run(command, hidden, tiny_home, timeout=600))
    found = {}
    for path in tiny_home.glob("models/*_sft*/result.json"):
        trainer = atomic.read_json(path.parent / "config.json")["settings"]["engine"]["trainer"]
        found[trainer] = atomic.read_json(path).get("processes", 1)
    assert found == {"trl": 2, "engine": 2}
