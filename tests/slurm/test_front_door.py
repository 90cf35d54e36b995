"""From run.sh to jobs: grids, failures that stop only what stands on them, cancelling, half-way
submissions, and code that cannot drift.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import Site, wait_for
from tests.test_run_sh import ASKED, QUESTIONS, at_terminal
from tuning.config import CHECKOUT
from tuning.runs.rundir import RunDirectory

GRID = {
    "TASK": "math", "DATASET": "arith", "BASE_MODEL": "tiny", "PFT_METHOD": "dpo",
    "DO_TRAINING": "y", "DO_SFT_FIRST": "y", "SFT_RATIO": "0.25 0.5", "TRAIN_SIZES": "64",
}  # fmt: skip
RUNS = (
    "tiny_sft-arith-16", "tiny_sft-arith-16_pt-arith-48",
    "tiny_sft-arith-32", "tiny_sft-arith-32_pt-arith-32",
)  # fmt: skip


def run_sh(site: Site, *flags: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`bash slurm/run.sh` with the grid in the environment."""
    site.variables |= GRID
    return site.run("bash", site.checkout / "slurm/run.sh", *flags, code=code)


def the_experiment(site: Site) -> str:
    """The name of the only experiment."""
    (folder,) = (site.home / "outputs/reports").glob("*/plan.json")
    return folder.parent.name


def states(site: Site) -> dict[str, str]:
    return {name: row["state"] for name, row in site.status().items()}


def test_a_failure_stops_only_what_stands_on_it_and_is_made_good(user: Site) -> None:
    (user.home / "models/tiny_sft-arith-32").write_text("in the way")
    run_sh(user)
    user.wait_idle()
    rows = user.status()
    assert {name: rows[name]["state"] for name in RUNS} == dict(
        zip(RUNS, ("done", "done", "failed", "blocked"), strict=True)
    )
    assert "tiny_sft-arith-32" in rows[RUNS[2]]["reason"]
    assert rows[RUNS[3]]["reason"] == f"{RUNS[2]} failed"
    assert "File exists" in user.tuning("logs", RUNS[2], "--experiment", the_experiment(user))

    (user.home / "models/tiny_sft-arith-32").unlink()
    before = {
        run: (user.home / "models" / run / "status.json").stat().st_mtime_ns for run in RUNS[:2]
    }
    calls = user.sbatch_calls
    said = run_sh(user).stdout
    assert user.sbatch_calls == calls + 3
    assert sum(" submitted " in line for line in said.splitlines()) == 2
    user.wait_idle()
    assert set(states(user).values()) == {"done"}
    for run, moment in before.items():
        assert (user.home / "models" / run / "status.json").stat().st_mtime_ns == moment


def test_cancel_takes_only_our_jobs_and_a_new_submission_goes_on(user: Site) -> None:
    stranger = user.by_hand("--time", "5", "--wrap", "sleep 300")
    try:
        run_sh(user)
        wait_for(lambda: "running" in states(user).values(), 60, user.queue)
        said = user.tuning("cancel", the_experiment(user))
        assert "cancelled" in said
        assert user.state(stranger) == "RUNNING"
        wait_for(lambda: "running" not in states(user).values(), 60, user.queue)
        assert list(user.jobs().values()).count("RUNNING") == 1
        run_sh(user)
    finally:
        user.cluster.run("scancel", stranger)
    user.wait_idle()
    assert set(states(user).values()) == {"done"}


@pytest.mark.parametrize("call", [2, 3])
def test_a_submission_that_breaks_half_way_is_finished_by_the_next(user: Site, call: int) -> None:
    last_call = '{ /usr/bin/sbatch "$@"; kill -9 $PPID; exit; }'
    user.wrap_sbatch(f'[ "$(wc -l < "$SBATCH_CALLS")" -ge {call} ] && {last_call}')
    user.variables |= GRID
    script = user.checkout / "slurm/run.sh"
    broken = subprocess.run(["bash", str(script)], env=user.environment, check=False, timeout=60)
    assert broken.returncode != 0
    left = user.jobs()
    assert left and set(left.values()) == {"PENDING"}
    user.wrap_sbatch()
    run_sh(user)
    user.wait_idle()
    assert set(states(user).values()) == {"done"}
    for run in RUNS:
        assert (user.home / "models" / run / "status.json").exists()
    assert left.keys() <= user.jobs().keys()
    assert all(user.jobs()[job] == "COMPLETED" for job in left)


def test_what_slurm_refuses_leaves_nothing_behind(user: Site) -> None:
    refused = run_sh(user, "--partition", "nowhere", code=2)
    assert "invalid partition specified: nowhere" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not [job for job, state in user.jobs().items() if state == "PENDING"]


def test_jobs_run_the_code_as_it_was_when_they_were_submitted(user: Site, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(CHECKOUT), str(clone)], check=True)
    _as_it_stands(clone)
    user.checkout = clone
    stage = clone / "tuning/run_sft.py"
    text = stage.read_text()
    stage.write_text(text + "\n# an uncommitted change\n")
    blocker = user.by_hand("--hold", "--wrap", "true")
    run_sh(user, "--dependency", f"afterok:{blocker}")
    stage.write_text("raise SystemExit('error: drifted')\n")
    (clone / "tuning/runs/rundir.py").write_text("broken!\n")
    user.cluster.run("scontrol", "release", blocker)
    user.wait_idle()
    user.checkout = CHECKOUT
    assert set(states(user).values()) == {"done"}
    (snapshot,) = (user.home / "snapshots").glob("[0-9a-f]*")
    assert "an uncommitted change" in (snapshot / "tuning/run_sft.py").read_text()
    config = RunDirectory(user.home / "models" / RUNS[0]).config
    assert config is not None and config["provenance"]["git"].endswith("-dirty")


def _as_it_stands(clone: Path) -> None:
    """Bring a clone to the state of the working tree, committed."""
    changed = subprocess.run(
        ["git", "-C", str(CHECKOUT), "ls-files", "-z"], check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, changed):
        if (CHECKOUT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((CHECKOUT / name).read_bytes())
    git = ["git", "-C", str(clone), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "as it stands"], check=True)


def test_no_secret_is_written_down(user: Site) -> None:
    user.variables["WANDB_API_KEY"] = "0123456789abcdef"
    said = run_sh(user, "--dry_run").stdout
    blocker = user.by_hand("--hold", "--wrap", "true")
    run_sh(user, "--dependency", f"afterok:{blocker}", "--wandb", "online")
    user.tuning("cancel", the_experiment(user))
    user.cluster.run("scancel", blocker)
    assert "0123456789abcdef" not in said
    for path in (user.home / "outputs").rglob("*"):
        if path.is_file():
            assert b"0123456789abcdef" not in path.read_bytes(), path


def test_a_person_is_shown_what_will_be_submitted_and_consents(user: Site) -> None:
    blocker = user.by_hand("--hold", "--wrap", "true")
    flags = ["--dependency", f"afterok:{blocker}", "--resources", "sft:gres=gpu:1",
             "--sbatch", "--nice=7"]  # fmt: skip
    dialogue = list(zip(QUESTIONS, ASKED, strict=True))
    consent = ("Submit these jobs? (y/N): ", "y")
    code, told = at_terminal(user.home, [*dialogue, consent], flags, **user.environment)
    assert code == 0, told
    shown = told.partition("as SLURM jobs:")[2].partition(consent[0])[0].replace("\r", "")
    assert "  sft: 1 stage\n    1 cores, gpu:1, 30 per start, --nice=7\n" in shown
    assert "  pretrain: 1 stage, 1 of them done\n  sft" in shown
    job = user.status()["tiny_sft-arith-500"]["job"]
    said = user.cluster.run("scontrol", "show", "job", job)
    assert f"JobName=sft-{the_experiment(user)}" in said and "gres:gpu:1" in said
    code, told = at_terminal(user.home, dialogue, [*flags, "--yes"], **user.environment)
    assert code == 0 and consent[0] not in told and "   queued" in told
    user.tuning("cancel", the_experiment(user))
    user.cluster.run("scancel", blocker)
