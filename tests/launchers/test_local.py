"""The local launcher with stages of a few lines: order, failures, and what runs side by side.

Not among the unit tests: every stage is two processes, which adds up to 20 seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.small_site import use
from tuning import config as site
from tuning.launchers.local import LocalLauncher
from tuning.plan import Plan, Stage, read_stage
from tuning.runs import atomic
from tuning.runs.rundir import Identity, RunDirectory, claim

STAGE = """
import json, os, sys, time
from tuning import config as site
from tuning.runs import interrupt
from tuning.runs.rundir import Identity, claim

interrupt.install()
stage = json.load(open(sys.argv[sys.argv.index("--stage") + 1]))["stage"]
name, hash_, log, do = stage["name"], stage["hash"], stage["run"]["log"], stage["run"]["do"]

def note(event):
    with open(log, "a") as file:
        file.write(json.dumps([time.time(), event, name, os.environ["OMP_NUM_THREADS"]]) + "\\n")

identity = Identity(run_name=name, kind="x", hash=hash_, hashed={}, settings={})
note("start")
if do == "fail":
    sys.exit("error: it was not to be")
if do == "lie":
    sys.exit(0)
with claim(site.models_dir(), identity) as directory:
    with directory.phase("train"):
        for at in range(int(do)):
            interrupt.check()
            directory.progress("train", at, int(do), final=True)
            time.sleep(0.05)
    note("end")
"""


class Experiment:
    """A plan of trivial stages and what they wrote down."""

    def __init__(self, root: Path) -> None:
        self.script = root / "stage.py"
        self.script.write_text(STAGE)
        self.log = root / "events.jsonl"
        self.stages: list[Stage] = []

    def add(self, name: str, *parents: str, do: object = 4, **changes) -> Stage:
        hash_ = f"{len(self.stages):064d}"
        stage = Stage(
            name=name, role="sft", hash=hash_, phases=("train",), parents=parents,
            script=str(self.script), run={"log": str(self.log), "do": str(do)},
        )  # fmt: skip
        self.stages.append(replace(stage, **changes))
        return self.stages[-1]

    @property
    def plan(self) -> Plan:
        return Plan(experiment="trial", stages=tuple(self.stages))

    def launch(self, **options) -> dict[str, tuple[str, str]]:
        return LocalLauncher(self.plan, **({"max_parallel": 2} | options)).launch()

    def states(self, **options) -> dict[str, str]:
        return {name: state for name, (state, _) in self.launch(**options).items()}

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(event, name) for _, event, name, _ in self.lines]

    @property
    def lines(self) -> list[list]:
        if not self.log.exists():
            return []
        return sorted(json.loads(line) for line in self.log.read_text().splitlines())

    @property
    def side_by_side(self) -> set[frozenset[str]]:
        """Every set of stages that ran at the same time."""
        running: set[str] = set()
        found = set()
        for event, name in self.events:
            running = running | {name} if event == "start" else running - {name}
            found.add(frozenset(running))
        return found


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return use(monkeypatch, tmp_path)


@pytest.fixture
def experiment(home, tmp_path, monkeypatch) -> Experiment:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Experiment(tmp_path)


def test_parents_end_before_their_children_start(experiment):
    experiment.add("a")
    experiment.add("b", "a")
    assert experiment.states() == {"a": "done", "b": "done"}
    assert experiment.events == [(e, n) for n in "ab" for e in ("start", "end")]
    record = site.reports_dir() / "trial" / "stages" / "a.json"
    assert atomic.read_json(record)["state"] == "done"
    assert (site.reports_dir() / "trial" / "logs" / "a.txt").exists()


def test_a_second_launch_does_only_what_is_missing(experiment):
    experiment.add("a", do=1)
    assert experiment.states() == {"a": "done"}
    events = experiment.events
    assert experiment.states() == {"a": "done"}
    assert experiment.events == events
    experiment.add("b", "a", do=1)
    assert experiment.states() == {"a": "done", "b": "done"}
    assert experiment.events == [*events, ("start", "b"), ("end", "b")]


def test_a_failure_stops_its_descendants_only(experiment):
    experiment.add("a", do=1)
    experiment.add("bad", "a", do="fail")
    experiment.add("below", "bad")
    experiment.add("lower", "below", "a")
    experiment.add("other", "a", do=1)
    assert experiment.launch() == {
        "a": ("done", ""),
        "bad": ("failed", "it was not to be"),
        "below": ("blocked", "bad failed"),
        "lower": ("blocked", "below failed"),
        "other": ("done", ""),
    }
    assert {name for _, name in experiment.events} == {"a", "bad", "other"}


def test_a_stage_that_says_done_and_is_not_has_failed(experiment):
    experiment.add("a", do="lie")
    assert experiment.states() == {"a": "failed"}


@pytest.mark.parametrize("slots", [1, 2])
def test_no_more_run_side_by_side_than_allowed(experiment, slots):
    for name in "abc"[: slots + 1]:
        experiment.add(name, do=8)
    assert set(experiment.states(max_parallel=slots).values()) == {"done"}
    assert max(len(names) for names in experiment.side_by_side) == slots
    threads = {threads for *_, threads in experiment.lines}
    assert threads == {str(max(1, (os.cpu_count() or 1) // slots))}


def test_a_wide_stage_runs_alone_with_all_cores(experiment):
    experiment.add("a", do=4)
    experiment.add("wide", wide=True, do=4)
    experiment.add("b", do=40)  # long enough to meet, however busy the machine
    experiment.add("c", do=40)
    assert set(experiment.states().values()) == {"done"}
    assert all(names == {"wide"} for names in experiment.side_by_side if "wide" in names)
    assert frozenset("bc") in experiment.side_by_side
    cores = str(os.cpu_count() or 1)
    assert {t for _, _, name, t in experiment.lines if name == "wide"} == {cores}


def test_a_stage_that_samples_on_several_gpus_gets_them_and_runs_alone(experiment):
    experiment.add("a", do=1)
    split = {"sampling": {"tensor_parallel_size": 2}}
    experiment.add("split", do=1, evaluation=split, phases=("train", "infer"))
    launcher = LocalLauncher(experiment.plan)
    launcher.devices = ["0", "1", "2"]
    one, two = experiment.plan.stages
    assert [launcher._alone(stage) for stage in (one, two)] == [False, True]
    placed = [launcher._placement(stage).devices for stage in (one, two)]
    assert placed == [("0",), ("0", "1")]


def sft(experiment: Experiment, outcome: dict) -> None:
    """A finished SFT run whose sweetspot `ppl-2.0` came out like this."""
    stage = experiment.add("sft", do=1)
    identity = Identity(run_name="sft", kind="x", hash=stage.hash, hashed={}, settings={})
    with claim(site.models_dir(), identity) as directory:
        directory.write_result(sweetspots={"ppl-2.0": outcome})
        directory.write_status("done", "", {"train": {"state": "done"}})


def test_an_unreached_sweetspot_is_skipped_and_stops_nothing(experiment):
    sft(experiment, {"state": "unreached", "best": 2.31})
    fork = {"parent": "sft", "sweetspot": "ppl-2.0", "role": "fork"}
    experiment.add("fork", "sft", **fork)
    experiment.add("row", "fork", script="", phases=(), trains=False)
    experiment.add("after", "row", do=1)
    assert experiment.launch() == {
        "sft": ("done", ""),
        "fork": ("skipped", "perplexity never reached 2.0 (best 2.31)"),
        "row": ("done", ""),
        "after": ("done", ""),
    }
    assert experiment.events == [("start", "after"), ("end", "after")]


def test_a_stage_whose_process_is_killed_goes_on(experiment):
    experiment.add("a", do=40)
    launcher = launch_elsewhere(experiment)
    run = RunDirectory(site.models_dir() / "a")
    stages = site.reports_dir() / "trial" / "stages"
    wait(lambda: list(stages.glob("*/a.json")))
    os.kill(holder(run), signal.SIGKILL)
    assert launcher.wait(timeout=30) == 0
    assert run.done("train")
    assert experiment.events.count(("start", "a")) == 2


LAUNCH = """
import json, sys
from pathlib import Path
from tuning.launchers.local import LocalLauncher
from tuning.plan import Plan
plan = Plan.from_json(json.loads(Path(sys.argv[1]).read_text()))
launcher = LocalLauncher(plan, **json.loads(sys.argv[2]))
states = launcher.launch()
print(json.dumps(states))
sys.exit(75 if launcher.stopping else 0)
"""


def launch_elsewhere(experiment: Experiment) -> subprocess.Popen[str]:
    path = site.home().parent / "plan.json"
    atomic.write_json(path, experiment.plan.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(path), '{"max_parallel": 2}'], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def holder(run: RunDirectory) -> int | None:
    found = atomic.read_json(run.path / "lock.json")
    return found["pid"] if found else None


def wait(ready, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_asked_to_stop_the_stages_save_and_the_next_launch_goes_on(experiment):
    experiment.add("a", do=400)
    experiment.add("b", "a", do=1)
    launcher = launch_elsewhere(experiment)
    run = RunDirectory(site.models_dir() / "a")
    wait(lambda: (run.path / "progress.json").exists())
    launcher.terminate()
    output, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 75
    assert json.loads(output) == {"a": ["pending", ""], "b": ["pending", ""]}
    assert "stopping a: saving its state" in errors
    assert (run.status["state"], run.status["reason"]) == (
        "pending", "stopped on request; the same command resumes"
    )  # fmt: skip
    shorter = {"log": str(experiment.log), "do": "1"}
    experiment.stages[0] = replace(experiment.stages[0], run=shorter)
    assert experiment.states() == {"a": "done", "b": "done"}


def test_asked_to_stop_while_a_stage_starts_that_stage_stops_too(experiment):
    class Late(LocalLauncher):
        def _start(self, stage):
            started = super()._start(stage)
            os.kill(os.getpid(), signal.SIGTERM)
            return started

    experiment.add("a", do=60)
    assert Late(experiment.plan, max_parallel=2).launch() == {"a": ("pending", "")}


def test_flags_of_the_launch_reach_the_stages(experiment):
    recorder = experiment.script.with_name("flags.py")
    recorder.write_text("import sys\nprint(*sys.argv[1:])\n")
    experiment.add("a", script=str(recorder))
    experiment.add("b", script=str(recorder), phases=("evaluation",))
    experiment.launch(wait=False, wandb="offline")
    logs = site.reports_dir() / "trial" / "logs"
    files = {name: site.reports_dir() / "trial" / "stages" / f"{name}.stage.json" for name in "ab"}
    assert (logs / "a.txt").read_text() == f"--stage {files['a']} --no_wait --wandb offline\n"
    assert (logs / "b.txt").read_text() == f"--stage {files['b']} --no_wait\n"
    assert [read_stage(files[name]) for name in "ab"] == experiment.stages


def test_gpus_are_given_out_one_each(experiment, monkeypatch):
    """Numbers of GPUs that this machine need not have."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    recorder = experiment.script.with_name("device.py")
    recorder.write_text(
        "import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\ntime.sleep(0.5)\n"
    )
    for name in "ab":
        experiment.add(name, script=str(recorder))
    launcher = LocalLauncher(experiment.plan)
    assert launcher.slots == 2
    launcher.launch()
    logs = site.reports_dir() / "trial" / "logs"
    assert {(logs / f"{name}.txt").read_text().strip() for name in "ab"} == {"3", "5"}


def test_more_stages_than_gpus_are_spread_over_them(experiment):
    for name in "abcde":
        experiment.add(name, script=str(experiment.script.with_name("sleep.py")))
    experiment.script.with_name("sleep.py").write_text("import time\ntime.sleep(60)\n")
    launcher = LocalLauncher(experiment.plan, max_parallel=5)
    launcher.devices = ["3", "5"]
    try:
        launcher._settle()
        launcher._start_ready()
        placed = [entry.placement.devices for entry in launcher.running]
        assert placed == [("3",), ("5",), ("3",), ("5",), ("3",)]
    finally:
        for entry in launcher.running:
            entry.process.terminate()
            entry.process.wait()


def test_a_number_of_threads_that_was_asked_for_is_kept(experiment, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    experiment.add("a", wide=True)
    assert experiment.states() == {"a": "done"}
    assert {threads for *_, threads in experiment.lines} == {"7"}
