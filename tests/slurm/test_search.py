"""A search on SLURM: one command, after which the last job of each round submits the next, also
where that job is preempted.
"""

from __future__ import annotations

import contextlib
import json

from tests.slurm.conftest import Site, wait_for
from tuning.search.grid import arms_of
from tuning.search.record import Record
from tuning.search.rounds import actions

SEARCH = (
    "submit", "--task", "math", "--dataset", "arith", "--base_model", "tiny", "--pft_method", "dpo",
    "--sft_ratio", "0", "0.5", "1", "--train_sizes", "32", "--do_training", "--do_sft_first",
    "--do_inference", "--do_evaluation", "--experiment", "found",
    "--search", "--search_max_runs", "2", "--search_batch", "1", "--search_first", "0.5",
)  # fmt: skip


def test_the_last_job_of_a_round_submits_the_next_also_if_it_is_requeued(user: Site) -> None:
    folder = user.home / "outputs/reports/found"
    said = user.tuning(*SEARCH)
    assert "follow with: tuning status found --watch" in said
    report = next(line.split()[1] for line in _jobs(folder) if line.startswith("report"))
    wait_for(lambda: user.state(report) == "RUNNING", 240, user.queue)
    with contextlib.suppress(RuntimeError):  # it may have ended in the same moment
        user.cluster.run("scontrol", "requeue", report)
        user.cluster.run("scontrol", "update", f"JobId={report}", "StartTime=now")
    wait_for(lambda: _over(folder), 400, user.queue)
    user.wait_idle()
    record = Record.read(folder)
    assert record is not None and len(actions(record.rounds)) == 2
    arms = {arm.key: stages for arm, stages in arms_of(record.plan).items()}
    rows = user.status("found")
    assert {row["state"] for row in rows.values()} == {"done"}
    for key, stages in arms.items():
        assert (stages[0].name in rows) is (key in actions(record.rounds))
    page = (folder / "report.html").read_text()
    assert "The search ran 2 of the 3 splits of the grid" in page
    calls = user.sbatch_calls
    assert "search is over" in user.tuning("status", "found")
    user.tuning(*SEARCH)
    assert user.sbatch_calls == calls


def _jobs(folder) -> list[str]:
    """`STAGE JOB` of everything that was submitted."""
    found = json.loads((folder / "slurm/jobs.json").read_text())["arrays"]
    return [f"{name} {a['number']}_{n}" for a in found for n, name in enumerate(a["stages"])]


def _over(folder) -> bool:
    record = Record.read(folder)
    return record is not None and bool(record.rounds[-1].end)
