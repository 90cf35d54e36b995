"""What may go, what never does, and that what is left still works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import check, copy_home, run_entry
from tests.logged import logged
from tests.run_configs import fork, sft
from tests.small_site import use
from tuning.evaluation.before_after import HeldOutConfig
from tuning.experiments.choices import Choices
from tuning.experiments.stages import StageMaker
from tuning.flags import restore
from tuning.manage.clean import DAY, HOUR, Leftover, orphans, removable, remove
from tuning.plan import Plan, Stage, save_plan, standing
from tuning.runs import atomic, manifest
from tuning.runs.errors import UserError
from tuning.runs.lock import Lock
from tuning.runs.rundir import Identity, RunDirectory, claim
from tuning.sweetspots.store import METADATA, find_sweetspot
from tuning.weights.config import ModelLoadConfig

unit = pytest.mark.unit


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    return use(monkeypatch, tmp_path)


def identity(name: str, hash_: str | None = None, **more) -> Identity:
    fields = {"kind": "sft", "settings": {}, "hashed": {}} | more
    return Identity(run_name=name, hash=hash_ or name * 8, **fields)


def seal(folder: Path, *, whole: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_text("1234567890")
    if whole:
        manifest.write_manifest(folder)
    return folder


def make(
    home: Path, name: str, *, done: bool = True, steps: tuple[int, ...] = (5, 10), **more
) -> RunDirectory:
    """A run as trainers leave it: checkpoints, a sweetspot, and a model where it is done."""
    with claim(home / "models", identity(name, **more)) as run:
        for step in steps:
            seal(manifest.checkpoint_directory(run.path, step))
        spot = run.path / "checkpoint-sweetspot-2.0"
        with atomic.whole_directory(spot) as made:
            atomic.write_json(made / METADATA, {"sft_data_used": 480})
            manifest.write_manifest(made)
        run.log_metrics({"step": 5})
        if done:
            with run.phase("train"), atomic.whole_directory(run.path / "model") as model:
                (model / "adapter_model.safetensors").write_text("weights")
        else:
            run.write_status("running", "", {"train": {"state": "running"}})
    return run


def evaluate(home: Path, name: str, hash_: str | None = None) -> Path:
    root = home / "outputs" / "math"
    parent = {"run_name": name, "hash": name * 8}
    made = identity(name, hash_ or name * 6, kind="evaluation", parent=parent)
    with claim(root, made) as run, run.phase("evaluate"):
        (run.path / "responses.jsonl").write_text("{}\n")
        atomic.write_json(run.path / "scores.json", {})
    return run.path


def plan(home: Path, name: str, *hashes: str) -> Path:
    path = home / "outputs" / "reports" / name / "plan.json"
    stages = [{"hash": h, "evaluation_hash": None} for h in hashes]
    atomic.write_json(path, {"experiment": name, "about": {}, "stages": stages})
    return path


def age(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    return path


def names(found: list[Leftover]) -> list[str]:
    return [left.path.name for left in found]


def everything(home: Path) -> set[str]:
    """All that is there but the files of locks."""
    return {
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.name not in (".lock", "lock.json")
    }


def clean(home: Path, live: set[str] = frozenset()) -> list[str]:
    """What is said while everything that may go is removed."""
    with logged() as said:
        remove(removable(home, live))
    return said


@unit
def test_of_a_finished_run_only_its_checkpoints_go(home):
    run = make(home, "a")
    before = everything(home)
    found = removable(home, set())
    assert names(found) == ["checkpoint-5", "checkpoint-10"]
    assert {left.why for left in found} == {"checkpoint of a finished run"}
    assert found[0].bytes == sum(p.stat().st_size for p in (run.path / "checkpoint-5").iterdir())
    freed = remove(found)
    assert freed == sum(left.bytes for left in found)
    gone = before - everything(home)
    assert {Path(path).parts[2] for path in gone} == {"checkpoint-5", "checkpoint-10"}
    assert find_sweetspot(RunDirectory(run.path), "ppl-2.0").left_of(1000) == 520
    assert removable(home, set()) == []


@unit
def test_a_run_that_may_resume_keeps_what_it_resumes_from(home):
    run = make(home, "a", done=False)
    seal(manifest.checkpoint_directory(run.path, 15), whole=False)
    (manifest.checkpoint_directory(run.path, 5) / "weights").write_text("cut")
    found = removable(home, set())
    assert names(found) == ["checkpoint-5", "checkpoint-15"]
    assert {left.why for left in found} == {"incomplete checkpoint"}
    remove(found)
    assert manifest.newest_whole(run.path) == run.path / "checkpoint-10"


@unit
def test_a_run_without_its_model_is_not_done(home):
    run = make(home, "a")
    shutil.rmtree(run.path / "model")
    assert removable(home, set()) == []


@unit
def test_a_sweetspot_stays_whatever_it_is(home):
    run = make(home, "a", steps=())
    (run.path / "checkpoint-sweetspot-2.0" / METADATA).write_text("")
    (run.path / "checkpoint-sweetspot-1.6").mkdir()
    assert removable(home, set()) == []


@unit
def test_what_is_half_written_goes(home):
    run = make(home, "a", done=False, steps=(5,))
    answers = evaluate(home, "b")
    (run.path / ".model.tmp").mkdir()
    (run.path / ".model.tmp" / "weights").write_text("12")
    (answers / ".scores.json.abc.tmp").write_text("{")
    assert names(removable(home, set())) == [".model.tmp", ".scores.json.abc.tmp"]
    assert clean(home) == []
    assert not (run.path / ".model.tmp").exists()
    assert (answers / "scores.json").exists() and (answers / "responses.jsonl").exists()


@unit
def test_what_a_job_may_still_write_stays(home):
    """Not all who write beside run directories hold a lock."""
    report = plan(home, "e", "a").parent
    (report / "stages").mkdir()
    fresh, old = report / "stages" / ".a.json.x.tmp", report / ".plan.json.y.tmp"
    fresh.touch()
    age_of = [old, home / "models" / ".a.gone.tmp", home / "snapshots" / ".d.tmp"]
    for path in age_of:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        age(path, HOUR + 60)
    assert {left.path for left in removable(home, set())} == set(age_of)
    assert clean(home) == []
    assert fresh.exists() and (report / "plan.json").exists()


@unit
def test_a_directory_that_is_held_is_left_alone(home):
    run = make(home, "a")
    (run.path / ".x.tmp").touch()
    found = removable(home, set())
    with Lock(run.path).holding():
        assert removable(home, set()) == []
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert held.stdout is not None and held.stdout.readline() == b"held\n"
        assert removable(home, set()) == []
        with logged() as said:
            assert remove(found) == 0
        assert len(said) == 3
        assert all("is in use by process" in line for line in said)
        assert (run.path / "checkpoint-10").exists() and (run.path / ".x.tmp").exists()
    finally:
        held.communicate()
    assert remove(found) > 0


HOLD = """
import sys
from pathlib import Path
from tuning.runs.lock import Lock
with Lock(Path(sys.argv[1])).holding():
    print("held", flush=True)
    sys.stdin.read()
"""


@unit
def test_a_run_that_was_started_anew_since_keeps_its_checkpoints(home):
    make(home, "a")
    found = removable(home, set())
    with claim(home / "models", identity("a"), force=True) as run:
        seal(run.path / "checkpoint-5")
        run.write_status("pending", "", {"train": {"state": "pending"}})
    with logged() as said:
        assert remove(found) == 0
    assert (run.path / "checkpoint-5").exists()
    assert said == [f"kept {run.path / 'checkpoint-5'}: it is needed again"]


@unit
def test_what_has_vanished_does_no_harm(home):
    run = make(home, "a")
    found = [*removable(home, set()), *orphans(home)]
    shutil.rmtree(run.path)
    with logged() as said:
        assert remove(found) == 0
    assert said == []
    assert not run.path.exists()


@unit
def test_what_cannot_be_removed_is_said(home, monkeypatch):
    run = make(home, "a")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    assert clean(home) == [
        f"kept {run.path / name}: Permission denied" for name in ("checkpoint-5", "checkpoint-10")
    ]


@unit
def test_a_link_goes_and_what_it_names_stays(home, tmp_path):
    run = make(home, "a", steps=())
    elsewhere = seal(tmp_path / "elsewhere")
    (run.path / "checkpoint-5").symlink_to(elsewhere)
    assert clean(home) == []
    assert not (run.path / "checkpoint-5").exists()
    assert (elsewhere / "weights").exists()


@unit
def test_copies_of_the_code_go_when_no_job_runs_them(home):
    folder = home / "snapshots"
    for name, old in (("live", 2 * DAY), ("fresh", HOUR), ("old", DAY + 60)):
        (folder / name / "tuning").mkdir(parents=True)
        (folder / name / "tuning" / "a.py").write_text("pass")
        age(folder / name, old)
    assert names(removable(home, {"live"})) == ["old"]
    assert clean(home, {"live"}) == []
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["fresh", "live"]


@unit
def test_a_copy_that_is_taken_up_meanwhile_stays(home):
    old = home / "snapshots" / "old"
    old.mkdir(parents=True)
    age(old, 2 * DAY)
    found = removable(home, set())
    os.utime(old)
    assert remove(found) == 0
    assert old.exists()


@unit
def test_a_folder_that_is_not_ours_is_never_touched(home):
    theirs = seal(home / "models" / "theirs" / "checkpoint-500", whole=False).parent
    atomic.write_json(theirs / "config.json", {"model_type": "llama"})
    (theirs / ".x.tmp").touch()
    seal(home / "models" / "plain" / "checkpoint-5", whole=False)
    (home / "models" / "plain" / ".x.tmp").touch()
    assert removable(home, set()) == []
    assert orphans(home) == []


@unit
def test_runs_of_an_older_form_are_left_alone(home):
    run, evaluation = make(home, "loose"), RunDirectory(evaluate(home, "loose"))
    (run.path / ".x.tmp").touch()
    assert removable(home, set()) and orphans(home)
    for directory in (run, evaluation):
        config = directory.config
        del config["format"]
        atomic.write_json(directory.path / "config.json", config)
    assert removable(home, set()) == []
    assert orphans(home) == []


@unit
def test_orphans_are_what_no_plan_and_no_run_needs(home):
    make(home, "planned", parent={"run_name": "parent", "hash": "parent" * 8})
    make(home, "parent", settings={"model": {"base_hash": "base" * 8}})
    make(home, "base", kind="pretrain", settings={"model": "base"})
    make(home, "loose")
    evaluate(home, "planned", "answers")
    evaluate(home, "loose")
    plan(home, "e", "planned" * 8, "answers")
    found = orphans(home)
    assert names(found) == ["loose", "loose"]
    assert {left.path.parent for left in found} == {home / "models", home / "outputs" / "math"}
    assert not {left.path for left in found} & {left.path for left in removable(home, set())}
    assert remove(found) == sum(left.bytes for left in found)
    assert sorted(path.name for path in home.glob("models/*")) == ["base", "parent", "planned"]
    assert [path.name for path in home.glob("outputs/math/*")] == ["planned"]
    assert not list(home.glob("models/.*.tmp"))


@unit
def test_likelihoods_of_models_that_an_experiment_has_are_no_orphans(home):
    """Those of the base are found by what a training starts from: a plan that samples no answers
    has no stage for it.
    """
    stage = maker_of_measured().sft_stage("sft", sft(), None, train=True)
    assert stage.before_after
    base = restore(ModelLoadConfig, (stage.run or {})["model"]).identity_hash
    likelihoods(home, "planned", stage.hash)
    likelihoods(home, "base", base)
    likelihoods(home, "loose", "loose" * 8)
    save_plan(home / "outputs/reports/e", Plan(experiment="e", stages=(stage,)))
    found = orphans(home)
    assert names(found) == ["loose_validation"]
    likelihoods(home, "late", "late" * 8)
    found = orphans(home)
    plan(home, "f", "late" * 8)
    remove(found)
    kept = sorted(path.name for path in home.glob("outputs/likelihoods/*"))
    assert kept == ["base_validation", "late_validation", "planned_validation"]


def maker_of_measured() -> StageMaker:
    choices = Choices(experiment="e", dataset="arith", task="math", held_out=HeldOutConfig())
    return StageMaker(model="tiny", choices=choices)


def likelihoods(home: Path, model: str, hash_: str) -> None:
    parent = {"run_name": model, "hash": hash_}
    made = identity(f"{model}_validation", f"{model}-l" * 8, kind="likelihoods", parent=parent)
    with claim(home / "outputs" / "likelihoods", made) as run, run.phase("measure"):
        pass


@unit
def test_parents_of_orphans_go_after_them(home):
    make(home, "child", parent={"run_name": "parent", "hash": "parent" * 8})
    make(home, "parent")
    assert names(orphans(home)) == ["child"]
    remove(orphans(home))
    assert names(orphans(home)) == ["parent"]


@unit
def test_an_orphan_that_a_plan_takes_up_meanwhile_stays(home):
    run = make(home, "a")
    found = orphans(home)
    plan(home, "e", "a" * 8)
    with logged() as said:
        assert remove(found) == 0
    assert said == [f"kept {run.path}: it is needed again"]


@unit
def test_an_orphan_that_is_held_is_none(home):
    run = make(home, "a")
    with Lock(run.path).holding():
        assert orphans(home) == []
    assert names(orphans(home)) == ["a"]


@unit
def test_the_name_of_a_removed_run_is_free_again(home):
    make(home, "a")
    remove(orphans(home))
    with claim(home / "models", identity("a", "b" * 8)) as run:
        assert run.path == home / "models" / "a"


@unit
@pytest.mark.parametrize("text", ["{", "[]", '{"stages": [{}]}', '{"stages": 5}'])
def test_with_a_plan_that_cannot_be_read_nothing_is_an_orphan(home, text):
    make(home, "a")
    path = plan(home, "e")
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.json' cannot be read, so it is unknown"):
        orphans(home)


@unit
def test_a_run_in_a_real_plan_is_no_orphan_and_its_fork_finds_its_sweetspot(home):
    of = sft(perplexity_thresholds=(2.0,))
    forked = fork(of=of)
    run = make(home, of.run_name, hash_=of.hash)
    made = make(home, forked.named(520), hash_=forked.hash, kind="pt")
    stage = Stage(
        name=of.run_name, role="sft", hash=of.hash, script="run_sft.py", phases=("train",),
        train_size=of.train_size,
    )  # fmt: skip
    stages = Plan(experiment="e", stages=(stage,))
    path = home / "outputs" / "reports" / "e" / "plan.json"
    atomic.write_json(path, stages.to_json())
    assert names(orphans(home)) == [made.path.name]
    clean(home)
    assert standing(stages, stages.stages[0], home).state == "done"
    assert find_sweetspot(RunDirectory(run.path), "ppl-2.0").path.is_dir()


def test_what_is_left_is_evaluated_and_forked(trained_home, tmp_path):
    """A finished run with all kinds of litter: after cleaning it is sampled anew, and a fork
    continues its sweetspot.
    """
    home = copy_home(trained_home, tmp_path / "home")
    data = ("--model", "tiny", "--dataset", "arith", "--task", "math")
    check(run_entry(home, "run_sft.py", *data, "--train_size", 96, "--perplexity_thresholds",
                    "5.0", "--do_training"))  # fmt: skip
    (run,) = home.glob("models/tiny_sft-*")
    seal(run / "checkpoint-5")
    (run / ".checkpoint-7.tmp").mkdir()
    before = everything(home)
    with logged() as said:
        assert remove(removable(home, set())) > 0
    assert said == []
    gone = {Path(path).name for path in before - everything(home)}
    assert gone == {"checkpoint-5", ".checkpoint-7.tmp", "weights", "manifest.json"}
    inference = ("run_inference.py", "--dataset", "arith", "--task", "math", "--do_inference")
    check(run_entry(home, *inference, "--run", run.name))
    check(run_entry(home, "run_dpo.py", *data, "--parent_run", run.name, "--sweetspot", "ppl-5.0",
                    "--total_data", 128, "--do_training"))  # fmt: skip
    assert removable(home, set()) == []
    assert json.loads((run / "status.json").read_text())["state"] == "done"
