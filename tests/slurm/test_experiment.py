"""A whole experiment as SLURM jobs: the same results as here, forks beside SFT, nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.slurm.conftest import Site, wait_for

FLAGS = (
    "--model", "tiny", "--dataset", "arith", "--task", "math",
    "--total_data", "384", "--sft_data", "320", "--perplexity_thresholds", "5.0", "1.01",
    "--no_early_stop", "--no_references", "--do_sft", "--do_dpo", "--do_inference",
    "--do_evaluation", "--experiment", "whole",
)  # fmt: skip


@pytest.fixture
def finished(user: Site) -> Site:
    """A site where the experiment was submitted once and has ended."""
    user.pipeline(*FLAGS, "--launcher", "slurm")
    user.wait_idle()
    return user


def test_an_experiment_on_the_cluster(
    finished: Site, make_site: Callable[..., Site], trained_home: Path
) -> None:
    here = make_site(trained_home, "here")
    here.pipeline(*FLAGS, "--launcher", "local", "--max_parallel", "1")
    assert finished.report("whole") == here.report("whole")
    assert (finished.home / "outputs/reports/whole/report.html").exists()
    _forks_ran_beside_sft(finished)
    _a_finished_experiment_is_not_submitted_again(finished)


def _forks_ran_beside_sft(site: Site) -> None:
    rows = site.status("whole")
    (sft,) = [row for name, row in rows.items() if "_sft-" in name and "sweetspot" not in name]
    (fork,) = [row for name, row in rows.items() if "sweetspot-ppl-5.0_dpo" in name]
    (missed,) = [row for name, row in rows.items() if "sweetspot-ppl-1.01_dpo" in name]
    assert (sft["state"], fork["state"], missed["state"]) == ("done", "done", "skipped")
    assert missed["reason"].startswith("perplexity never reached 1.01 (best ")
    assert _moment(site, fork["job"], "%S") < _moment(site, sft["job"], "%e")


def _moment(site: Site, job: str, what: str) -> datetime:
    told = site.cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", what).split()[0]
    return datetime.fromisoformat(told)


def _a_finished_experiment_is_not_submitted_again(site: Site) -> None:
    before = site.sbatch_calls
    said = site.pipeline(*FLAGS, "--launcher", "slurm")
    assert site.sbatch_calls == before
    assert "report.html" in said


def test_an_experiment_that_is_queued_is_not_submitted_again(user: Site) -> None:
    blocker = user.by_hand("--hold", "--wrap", "true")
    flags = (*FLAGS, "--launcher", "slurm", "--dependency", f"afterok:{blocker}")
    first = user.pipeline(*flags)
    calls, jobs = user.sbatch_calls, user.jobs()
    assert "submitted" in first
    second = user.pipeline(*flags)
    assert (user.sbatch_calls, user.jobs()) == (calls, jobs)
    assert "submitted" not in second
    for line in (line for line in first.splitlines() if " submitted " in line):
        assert line.replace("submitted", "   queued") in second
    assert states_but_pretraining(user) == {"waiting"}
    user.tuning("cancel", "whole")
    user.cluster.run("scancel", blocker)
    wait_for(lambda: states_but_pretraining(user) <= {"cancelled", "blocked"})


def states_but_pretraining(site: Site) -> set[str]:
    """The states of all stages but those of `tiny` itself, which stand ready."""
    ready = ("tiny", "tiny-base")
    return {row["state"] for name, row in site.status("whole").items() if name not in ready}


def test_the_default_launcher_is_slurm_where_sbatch_answers(user: Site) -> None:
    assert "#SBATCH --array=0-0" in user.pipeline(*FLAGS, "--dry_run")
    user.variables["SLURM_CONF"] = "/nowhere"
    assert "#SBATCH" not in user.pipeline(*FLAGS, "--dry_run")
    assert user.sbatch_calls == 0


def test_a_fork_keeps_its_result_when_sft_ends_badly_after_it_was_let_go(user: Site) -> None:
    flags = (*FLAGS[:-1], "kept", "--sft_num_train_epochs", "8", "--launcher", "slurm")
    user.pipeline(*flags)

    def rows() -> dict[str, dict[str, str]]:
        found = user.status("kept")
        return {
            "sft": next(r for n, r in found.items() if "_sft-" in n and "sweetspot" not in n),
            "fork": next(r for n, r in found.items() if "sweetspot-ppl-5.0_dpo" in n),
            "missed": next(r for n, r in found.items() if "sweetspot-ppl-1.01_dpo" in n),
        }

    wait_for(lambda: rows()["fork"]["state"] == "running", 120, user.queue)
    user.cluster.run("scancel", rows()["sft"]["job"])
    user.wait_idle()
    ended = {name: (row["state"], row["reason"]) for name, row in rows().items()}
    assert ended["fork"] == ("done", "")
    assert ended["sft"][0] == "cancelled"
    assert ended["missed"] == ("blocked", f"{rows()['sft']['stage']} cancelled")
    (told,) = [
        row for row in user.report("kept") if row["run_name"].startswith("tiny_sweetspot-ppl-5.0")
    ]
    assert told["note"] == "" and float(told["pass_at_1"]) >= 0
