"""Submits the next round of a search, where SLURM carries it out.

    python -m tuning.launchers.slurm.rounds REPORT_FOLDER

runs in the report, the last job of each round, in the code and with the resources of the first
submission, so that nobody has to wait for a round to end. A job that is requeued in between submits
a round that was decided and not submitted; what failed in an earlier one waits for the user.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuning.launchers.slurm.ledger import REPORT, Jobs
from tuning.launchers.slurm.outcome import Asked, Options
from tuning.launchers.slurm.portions import Settled, left_stages, settled, submit_later
from tuning.plan import Plan
from tuning.runs import atomic
from tuning.runs.lock import Lock


def write_asked(folder: Path, whole: Plan, cluster: Asked, options: Options) -> None:
    """Write down what every run of the grid asks for, for the rounds to come."""
    stages = [*(stage for stage in whole.stages if stage.has_work), REPORT]
    asked = {stage.name: cluster.of(stage) for stage in stages}
    kept = {"wandb": options.wandb, "max_submit": options.max_submit}
    atomic.write_json(_path(folder), settled(asked, kept))


def submit_round(folder: Path) -> None:
    """Submit the next round from within a job, if this is a search; what goes wrong is printed."""
    submit_later(_path(folder), "tuning.launchers.slurm.rounds", folder, "round")


def _path(folder: Path) -> Path:
    return folder / "slurm" / "search.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Submit the next round; exit code 0."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    with Lock(folder).holding():
        print(f"next round: {_submitted(folder)}")
    return 0


def _submitted(folder: Path) -> str:
    """Decide the next round and submit it; what was done, in words."""
    from tuning.experiments.search import Rounds
    from tuning.launchers.slurm.client import Slurm
    from tuning.launchers.slurm.submission import Submission

    rounds, asked = Rounds.recorded(folder), atomic.read_object(_path(folder))
    now = Plan.from_json(atomic.read_object(folder / "plan.json") or {})
    if rounds is None or asked is None or "search" not in now.about:
        return "the experiment is no search any more"
    slurm, jobs = Slurm(), Jobs(folder)
    if left_stages(folder) or _goes_on(slurm, jobs):
        return "this one goes on"
    if rounds.last.end:
        return "the search is over"
    plan = rounds.plan
    while not (new := _new(plan, jobs)):
        more = rounds.advance()
        print("\n".join(rounds.told()), flush=True)
        if more is None:
            return "the search is over"
        plan = more
    options = Options(**asked["options"], only=frozenset(new))
    outcome = Submission(plan, Settled(asked), slurm, options).submit()
    return f"{len(outcome.new)} stages submitted, {len(outcome.left)} remain"


def _goes_on(slurm: Any, jobs: Jobs) -> bool:
    """Whether a job of the experiment waits or runs, but for reports."""
    tokens = {array.token for array in jobs.arrays() if array.kind != REPORT.kind}
    return any(job.live and job.token in tokens for job in slurm.queue(jobs.users()))


def _new(plan: Plan, jobs: Jobs) -> list[str]:
    """The stages that are not done and were never submitted as they are now."""
    from tuning.experiments.search import pending

    keys = {name: task.key for name, task in jobs.latest().items()}
    return [stage.name for stage in pending(plan) if keys.get(stage.name) != stage.key]


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
