"""Tuning as a phase of real runs: what is picked is what trains, once for a key, and on resume; and
whatever becomes of the trials, the run is trained.

Losses with and without tuning are equal within what the micro-batch and recomputed activations may
change (tests/invariant/test_trainers_agree.py).
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.autotune.searches import SHAPE, pretraining, search_of
from tests.conftest import check, copy_home, run_entry, start_entry
from tests.warm import Process
from tuning.autotune import phase
from tuning.autotune.observation import History, Observation
from tuning.runs import atomic
from tuning.runs.lock import process_start
from tuning.runs.memory import family
from tuning.runs.rundir import RunDirectory

HERE = Path(__file__).parent
TUNED = ("--autotune", "--profile_steps", 3, "--max_iterations", 2, "--time_budget", 400)
CAP = ("--memory_cap", "4G")
ONCE = (*TUNED[:4], 1, *TUNED[5:])
DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--do_training")
SFT = (*DATA, "--train_size", 32, "--micro_batch_size", 2, "--loss", "strange_losses:watched")
DPO = (*DATA, "--train_size", 16, "--micro_batch_size", 1)
SMALL = [
    word for name, value in SHAPE.items() for word in (f"--{name}", str(value))
] + ["--use_mock_data", "--total_batch_size", "256"]  # fmt: skip


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of these tests, in whatever is started."""
    _prepend(monkeypatch, HERE)


def _prepend(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    path = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, path)))


def break_trials(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Let trials misbehave from now on; they are real starts."""
    _prepend(monkeypatch, HERE / "faults")
    monkeypatch.setenv("TUNING_TEST_FAULT", fault)


def choice(run: Path) -> dict[str, Any]:
    return atomic.read_object(run / "autotune.json") or {}


def trials(run: Path) -> list[Observation]:
    return History(run / "autotune.jsonl").read()


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in RunDirectory(run).metrics() if "loss" in line]


def passes(file: Path) -> list[int]:
    """Forward passes of each process, in the order in which they began."""
    return list(Counter(file.read_text().split()).values())


def ended(process: Process, seconds: float = 300) -> int:
    return process.wait(seconds)


def wait_until(holds, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_sft_trains_as_it_was_tuned_and_two_runs_of_one_key_search_once(
    tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNING_TEST_WATCHED", str(tmp_path / "other"))
    other = start_entry(tiny_home, "run_sft.py", *SFT, "--seed", 7, *TUNED, *CAP)
    monkeypatch.setenv("TUNING_TEST_WATCHED", str(tmp_path / "watched"))
    check(run_entry(tiny_home, "run_sft.py", *SFT, *TUNED, *CAP))
    assert ended(other) == 0
    runs = sorted((tiny_home / "models").glob("tiny_sft-arith-32*"))
    found = [choice(run) for run in runs]
    assert sorted(c["source"] for c in found) == ["cache", "search"]
    assert found[0]["candidate"] == found[1]["candidate"]
    (kept,) = (tiny_home / "cache/autotune").glob("*/history.jsonl")
    assert len(History(kept).read()) == found[0]["trials"] <= 2
    assert all(trials(run) == History(kept).read() for run in runs)
    assert all((run / "autotune.svg").exists() for run in runs)
    assert not list((tiny_home / "cache/autotune/scratch").iterdir())

    (run,) = (r for r in runs if RunDirectory(r).config["settings"]["training"]["seed"] != 7)
    micro = found[0]["candidate"]["micro_batch"]
    assert passes(tmp_path / "watched")[-1] == 4 * 16 // micro, "the pick is what trained"
    own, *_ = trials(run)
    assert (own.candidate.micro_batch, own.candidate.gradient_checkpointing) == (2, False)
    best = max(trials(run), key=lambda o: o.tokens_per_second or 0)
    assert best.candidate.micro_batch == micro, "at least as fast as the run's own settings"

    plain = copy_home(tiny_home, tmp_path / "plain")
    for made in plain.glob("models/tiny_sft-*"):
        RunDirectory(made).write_status("pending", phases={"train": {"state": "pending"}})
        (made / "autotune.json").unlink()
    (plain / "models" / run.name / "metrics.jsonl").unlink()
    monkeypatch.setenv("TUNING_TEST_WATCHED", str(tmp_path / "plain.txt"))
    check(run_entry(plain, "run_sft.py", *SFT))
    assert passes(tmp_path / "plain.txt") == [4 * 16 // 2]
    assert losses(run) == pytest.approx(losses(plain / "models" / run.name), abs=1e-4)


def test_dpo_trains_as_it_was_tuned(tiny_home: Path, tmp_path: Path) -> None:
    plain = copy_home(tiny_home, tmp_path / "plain")
    check(run_entry(tiny_home, "run_dpo.py", *DPO, *TUNED, *CAP))
    check(run_entry(plain, "run_dpo.py", *DPO))
    (run,) = (tiny_home / "models").glob("tiny_pt-*")
    found = choice(run)
    assert (found["source"], found["trials"]) == ("search", 2)
    own, other = trials(run)
    assert (own.candidate.micro_batch, own.outcome, other.outcome) == (1, "ok", "ok")
    assert other.candidate.micro_batch > 1
    assert found["compute"]["micro_batch_size"] == found["candidate"]["micro_batch"]
    assert losses(run) == pytest.approx(losses(plain / "models" / run.name), abs=1e-4)


def test_pretraining_is_tuned_and_resumed_with_the_same_choice(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, "--max_steps", 400, "--save_every_steps", 50, "--micro_batch_size", 1]
    words += ["--loss", "strange_losses:watched"]
    monkeypatch.setenv("TUNING_TEST_WATCHED", str(tmp_path / "first"))
    first = start_entry(home, "run_pretrain.py", *words, *TUNED, *CAP)

    def trains() -> bool:
        said = [atomic.read_object(p) or {} for p in home.glob("models/*/progress.json")]
        return any(p["phase"] == "train" and p["at"] > 10 for p in said)

    wait_until(trains)
    first.send_signal(signal.SIGTERM)
    assert ended(first) == 75
    (run,) = (home / "models").iterdir()
    before = (run / "autotune.json").read_bytes()
    monkeypatch.setenv("TUNING_TEST_WATCHED", str(tmp_path / "again"))
    check(run_entry(home, "run_pretrain.py", *words))
    assert (run / "autotune.json").read_bytes() == before
    micro = choice(run)["candidate"]["micro_batch"]
    assert micro > 1
    assert passes(tmp_path / "again")[0] % (8 // micro) == 0
    assert passes(tmp_path / "again")[0] < 400 * 8 // micro

    monkeypatch.setenv("TUNING_TEST_WATCHED", str(tmp_path / "straight"))
    there = tmp_path / "straight run"
    check(run_entry(home, "run_pretrain.py", *words, *TUNED, *CAP, "--output_dir", there))
    assert choice(there)["source"] == "cache"
    assert passes(tmp_path / "straight") == [400 * 8 // micro], "and a hit tries nothing"
    assert losses(run) == losses(there)


def test_a_trial_above_the_cap_is_out_of_memory_and_the_run_is_trained(home: Path) -> None:
    done = check(
        run_entry(home, "run_pretrain.py", *SMALL, "--max_steps", 3, *TUNED, "--memory_cap", "200M")
    )
    (run,) = (home / "models").iterdir()
    assert {o.outcome for o in trials(run)} == {"oom"}
    assert "above the limit" in trials(run)[0].note
    assert choice(run)["source"] == "default"
    assert "not tuned, training with the run's own settings" in done.stderr
    assert RunDirectory(run).done("train")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_ended_while_it_tunes_the_stage_resumes(
    home: Path, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals
) -> None:
    words = [*SMALL, "--max_steps", 3, *ONCE]
    break_trials(monkeypatch, "hang")
    stage = start_entry(home, "run_pretrain.py", *words)

    def tunes() -> bool:
        said = [atomic.read_object(p) or {} for p in home.glob("models/*/progress.json")]
        return any(p["phase"] == "tune" and p["at"] == 1 for p in said) and len(of_stage()) > 1

    def of_stage() -> list[int]:
        return family(stage.pid)

    wait_until(tunes)
    (trial,) = of_stage()[1:]
    stage.send_signal(sign)
    assert ended(stage) == (-9 if sign == signal.SIGKILL else 75)
    if sign == signal.SIGTERM:
        assert not process_start(trial)
        (run,) = (home / "models").iterdir()
        assert RunDirectory(run).status["state"] == "pending"
    else:
        os.kill(trial, signal.SIGKILL)  # it hangs before it could ask to end with its parent
    monkeypatch.delenv("TUNING_TEST_FAULT")
    check(run_entry(home, "run_pretrain.py", *words))
    (run,) = (home / "models").iterdir()
    assert choice(run)["source"] == "search"
    assert not list((home / "cache/autotune/scratch").iterdir())


def test_several_processes_are_tuned_for_before_they_start(home: Path) -> None:
    """torchrun starts the trials as it starts the run."""
    from tests import warm
    from tests.conftest import environment
    from tuning.config import PACKAGE

    start = ["-m", "tuning.launchers.processes", "--standalone", "--nproc_per_node=2"]
    script = str(PACKAGE / "run_pretrain.py")
    words = [*start, script, *SMALL, "--max_steps", 4, *ONCE]
    check(warm.run([*map(str, words)], environment(home), home.anchor, 400))
    (run,) = (home / "models").iterdir()
    found = choice(run)
    assert (found["source"], found["processes"]) == ("search", 2)
    (trial,) = trials(run)
    assert trial.ok, trial.note
    assert RunDirectory(run).result["processes"] == 2


FAULTS = {
    "kill": "crash", "exit": "crash", "nothing": "garbage", "half": "garbage", "memory": "oom",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_search_whose_trials_all_fail_ends(
    fault: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNING_HOME", str(home))
    break_trials(monkeypatch, fault)
    told: list[int] = []
    config = search_of(memory_cap="512M")
    found = phase.choose(config, lambda at, of, note: told.append(at))
    assert {o.outcome for o in found.observations} == {FAULTS[fault]}
    assert 1 <= len(found.observations) <= 3
    assert len({o.candidate for o in found.observations}) == len(found.observations)
    assert found.choice.source == "default"
    assert found.choice.applied(config.trained) == config.trained
    assert sorted(set(told)) == list(range(1, len(found.observations) + 1))
    monkeypatch.setenv("TUNING_TEST_FAULT", "")
    assert not list((home / "cache/autotune").glob("*/history.jsonl")), "the next job tries anew"


@pytest.mark.parametrize(("loss", "outcome"), [("no_number", "garbage"), ("too_large", "oom")])
def test_a_loss_that_is_no_number_and_an_allocator_that_gives_up(
    loss: str, outcome: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNING_HOME", str(home))
    monkeypatch.syspath_prepend(str(HERE))
    run = pretraining(loss=f"strange_losses:{loss}")
    found = phase.choose(search_of(run, max_iterations=1), lambda *_: None)
    assert [o.outcome for o in found.observations] == [outcome]
    assert json.dumps(found.observations[0].to_json())
