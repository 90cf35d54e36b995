"""The run directory: who gets which, what its phases leave behind, and what can be read back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tuning.runs import atomic
from tuning.runs.errors import Afresh, Interrupted, StageFailed, UserError
from tuning.runs.identity import FORMAT
from tuning.runs.lock import Lock
from tuning.runs.progress import PROGRESS_VARIABLE
from tuning.runs.rundir import (
    Identity,
    RunDirectory,
    claim,
    locate,
    read_lines,
)

pytestmark = pytest.mark.unit

OURS = Identity(
    run_name="run",
    kind="sft",
    hash="a" * 64,
    hashed={"rate": 1},
    settings={"rate": 1, "path": "/x"},
    parent={"run_name": "base", "hash": "c" * 64},
    artifact="adapter",
)
OTHERS = replace(OURS, hash="b" * 64, hashed={"rate": 2}, settings={"rate": 2, "path": "/x"})


def claimed(root: Path, identity: Identity = OURS, **options) -> RunDirectory:
    with claim(root, identity, **options) as directory:
        return directory


def test_locate_gives_the_name_to_the_first_and_the_hash_to_others(tmp_path):
    assert locate(tmp_path, "run", OURS.hash) == tmp_path / "run"
    claimed(tmp_path)
    assert locate(tmp_path, "run", OURS.hash) == tmp_path / "run"
    assert locate(tmp_path, "run", OTHERS.hash) == tmp_path / "run-bbbbbbbb"
    assert locate(tmp_path, "run-bbbbbbbb", OTHERS.hash) == tmp_path / "run-bbbbbbbb"


def test_an_empty_directory_is_nobodys(tmp_path):
    (tmp_path / "run").mkdir()
    assert locate(tmp_path, "run", OURS.hash) == tmp_path / "run"
    assert RunDirectory(tmp_path / "run").status["state"] == "pending"
    assert claimed(tmp_path).path == tmp_path / "run"


def test_claim_writes_what_the_run_is(tmp_path):
    directory = claimed(tmp_path)
    config = directory.config
    assert config is not None
    provenance = config.pop("provenance")
    assert config == {
        "format": FORMAT,
        "run_name": "run",
        "kind": "sft",
        "hash": OURS.hash,
        "parent": OURS.parent,
        "artifact": "adapter",
        "settings": OURS.settings,
        "hashed": OURS.hashed,
    }
    assert provenance["packages"]["torch"]
    assert {"git", "host", "python", "command", "time"} <= provenance.keys()
    assert directory.hash == OURS.hash


def test_another_configuration_goes_to_its_own_directory(tmp_path):
    first, second = claimed(tmp_path), claimed(tmp_path, OTHERS)
    assert (first.name, second.name) == ("run", "run-bbbbbbbb")
    assert second.config["run_name"] == "run-bbbbbbbb"
    assert (claimed(tmp_path).name, claimed(tmp_path, OTHERS).name) == ("run", "run-bbbbbbbb")


def test_two_that_share_even_the_short_hash_never_share_a_directory(tmp_path):
    claimed(tmp_path, OTHERS)
    claimed(tmp_path)
    twin = replace(OURS, hash="a" * 8 + "f" * 56, hashed={"rate": 3})
    with pytest.raises(StageFailed, match=r"another configuration.*rate: 1 -> 3"):
        claimed(tmp_path, twin)
    assert RunDirectory(tmp_path / "run-aaaaaaaa").hash == OURS.hash


def test_who_waited_for_another_configuration_moves_on_to_its_own(tmp_path):
    code = f"""
from pathlib import Path
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_rundir import OTHERS
from tuning.runs import log
from tuning.runs.rundir import claim
log.configure()
with claim(Path({str(tmp_path)!r}), OTHERS) as directory:
    print(directory.name)
"""
    with Lock(tmp_path / "run").holding():
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert "in use by" in other.stdout.readline()
        atomic.write_json(tmp_path / "run" / "config.json", {"hash": OURS.hash, "format": FORMAT})
    assert other.communicate(timeout=20)[0] == "run-bbbbbbbb\n"


def test_claim_does_not_wait_when_told_so(tmp_path):
    with (
        claim(tmp_path, OURS),
        pytest.raises(StageFailed, match="in use by"),
        claim(tmp_path, OURS, wait=False),
    ):
        pytest.fail("two have the run")


def test_force_empties_the_directory(tmp_path):
    directory = claimed(tmp_path)
    with directory.phase("train"):
        (directory.path / "checkpoint-5").mkdir()
        (directory.path / "metrics.jsonl").write_text("{}\n")
    other = claimed(tmp_path, OTHERS)
    with claim(tmp_path, OURS, force=True) as again:
        assert sorted(p.name for p in again.path.iterdir()) == [".lock", "config.json", "lock.json"]
        assert not again.done("train")
    assert other.config is not None


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"packages": {"torch": "0.1"}}, "torch 0.1 -> "),
        ({"git": "0123456789ab"}, "git 0123456789ab -> "),
    ],
)
def test_going_on_with_other_versions_is_a_warning(tmp_path, change, shown, said):
    directory = claimed(tmp_path)
    config = directory.config
    standing = config["provenance"]
    for key, value in change.items():
        standing[key] = standing[key] | value if isinstance(value, dict) else value
    atomic.write_json(directory.path / "config.json", config)
    claimed(tmp_path)
    assert len(said) == 1
    assert said[0].startswith("warning: run was started with other versions: ")
    assert shown in said[0]
    directory.write_status("done")
    claimed(tmp_path)
    assert len(said) == 1


def older(directory: RunDirectory) -> dict:
    """Make a directory one of an older form, which had no format; its config.json."""
    config = directory.config
    del config["format"]
    atomic.write_json(directory.path / "config.json", config)
    return config


def test_a_directory_of_an_older_form_is_left_alone(tmp_path):
    """The same run gets a directory of its own beside it, even where the hash is the same."""
    first = claimed(tmp_path)
    with first.phase("train"):
        (first.path / "model").mkdir()
    before = older(first)
    assert locate(tmp_path, "run", OURS.hash) == tmp_path / "run-aaaaaaaa"
    again = claimed(tmp_path, force=True)
    assert again.path == tmp_path / "run-aaaaaaaa"
    assert not again.done("train")
    assert first.config == before and (first.path / "model").is_dir()
    assert first.status["state"] == "done" and not first.done("train")


def test_a_directory_that_was_emptied_halfway_is_not_done(tmp_path, monkeypatch):
    first = claimed(tmp_path)
    with first.phase("train"):
        (first.path / "model").mkdir()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tuning.runs.rundir.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        claimed(tmp_path, force=True)
    assert not first.done("train")


def test_an_older_form_under_the_long_name_is_refused_and_left(tmp_path):
    claimed(tmp_path, OTHERS)
    second = claimed(tmp_path)
    before = older(second)
    with pytest.raises(
        StageFailed, match="written by another version of tuning and was not changed"
    ):
        claimed(tmp_path, force=True)
    assert second.config == before


def test_an_older_form_in_a_folder_that_was_named_is_refused(tmp_path):
    identity = replace(OURS, run_name="mine")
    before = older(claimed(tmp_path, identity, exact=True))
    for force in (False, True):
        with pytest.raises(UserError, match="holds a run of another version of tuning"):
            claimed(tmp_path, identity, exact=True, force=force)
    assert RunDirectory(tmp_path / "mine").config == before


def test_the_same_versions_are_no_warning(tmp_path, said):
    claimed(tmp_path)
    claimed(tmp_path)
    assert said == []


def test_a_phase_is_running_then_done(tmp_path):
    directory = claimed(tmp_path)
    with directory.phase("infer", last=False):
        assert directory.status["state"] == "running"
        assert directory.status["phases"]["infer"]["state"] == "running"
    assert directory.status["state"] == "running"
    assert directory.done("infer") and not directory.done("evaluate")
    with directory.phase("evaluate"):
        pass
    assert directory.status["state"] == "done"
    assert directory.done("infer") and directory.done("evaluate")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (StageFailed("no space\n  is left"), "failed", "no space is left"),
        (ValueError("x" * 2000), "failed", "x" * 500),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
        (Interrupted(), "pending", "stopped on request; the same command resumes"),
        (Afresh("late"), "pending", "goes on in a new process"),
        (KeyboardInterrupt(), "pending", "stopped on request; the same command resumes"),
    ],
    ids=["failed", "long", "silent", "interrupted", "afresh", "ctrl-c"],
)
def test_how_a_phase_ends_badly(tmp_path, error, state, reason):
    directory = claimed(tmp_path)
    with pytest.raises(type(error)), directory.phase("train"):
        raise error
    assert (directory.status["state"], directory.status["reason"]) == (state, reason)
    assert directory.status["phases"]["train"]["state"] == "pending"
    with directory.phase("train"):
        pass
    assert (directory.status["state"], directory.status["reason"]) == ("done", "")


def test_seconds_add_up_over_interruptions(tmp_path):
    directory = claimed(tmp_path)
    with pytest.raises(Interrupted), directory.phase("train"):
        time.sleep(0.1)
        raise Interrupted
    first = directory.status["phases"]["train"]["seconds"]
    with directory.phase("train"):
        time.sleep(0.1)
    assert 0.1 <= first < directory.status["phases"]["train"]["seconds"]


def test_result_is_added_to(tmp_path):
    directory = claimed(tmp_path)
    assert directory.result == {}
    directory.write_result(a=1, b=2)
    directory.write_result(b=3)
    assert directory.result == {"a": 1, "b": 3}


def test_metrics_rewind_to_a_step(tmp_path):
    directory = claimed(tmp_path)
    assert directory.metrics() == []
    records = [{"step": step, "loss": 1 / (step + 1)} for step in (0, 5, 5, 10, 15)]
    for record in records:
        directory.log_metrics(record)
    assert directory.metrics() == records
    directory.rewind_metrics(10)
    assert directory.metrics() == records[:4]
    directory.rewind_metrics(-1)
    assert directory.metrics() == []


@pytest.mark.parametrize(
    "values", [{"loss": float("nan")}, {"loss": 1.0, "grad_norm": float("inf")}]
)
def test_a_loss_or_gradient_that_is_no_number_ends_a_training(tmp_path, values):
    directory = claimed(tmp_path)
    directory.log_metrics({"step": 1, "loss": 2.0, "grad_norm": 1.0})
    with pytest.raises(StageFailed, match=r"diverged: (loss is nan|grad_norm is inf) at step 2"):
        directory.log_metrics({"step": 2, **values})
    assert [line["step"] for line in directory.metrics()] == [1]


def test_a_last_line_that_was_cut_short_is_left_out_and_rewound(tmp_path):
    directory = claimed(tmp_path)
    for step in (1, 2):
        directory.log_metrics({"step": step})
    path = directory.path / "metrics.jsonl"
    path.write_text(path.read_text()[:-3])
    assert directory.metrics() == [{"step": 1}]
    directory.rewind_metrics(1)
    directory.log_metrics({"step": 2})
    assert directory.metrics() == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_ends_the_reading_with_a_warning(tmp_path, capsys):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    assert read_lines(path) == [{"step": 1}]
    assert "damaged line" in capsys.readouterr().err
    assert read_lines(tmp_path / "none.jsonl") == []


def test_lines_hold_any_text(tmp_path):
    path = tmp_path / "lines.jsonl"
    rows = [{"text": text} for text in ("a\u2028b\x85c\x0cd\ne", "🙂", "")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_lines(path) == rows


def test_progress_is_told_to_who_started_the_stage(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "told.json"))
    directory = claimed(tmp_path)
    directory.progress("train", 3, 10, "loss 1.2")
    directory.progress("train", 4, 10)
    told = atomic.read_json(tmp_path / "told.json")
    here = atomic.read_json(directory.path / "progress.json")
    assert (here["at"], here["of"], here["note"]) == (3, 10, "loss 1.2")
    assert told == here | {"directory": str(directory.path)}
    directory.progress("train", 10, 10, final=True)
    assert atomic.read_json(directory.path / "progress.json")["at"] == 10
