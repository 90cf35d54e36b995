"""Submits the next round of a search, where SLURM carries it out.

    python -m tuning.launchers.slurm.rounds REPORT_FOLDER

runs in the report, the last job of each round, in the code and with the resources of the first
submission, so that nobody has to wait for a round to end. A job that is requeued in between submits
a round that was decided and not submitted, and completes a submission that was interrupted; what
failed in an earlier round waits for the user, with all that starts from it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuning.launchers.slurm.ledger import REPORT, Jobs
from tuning.launchers.slurm.outcome import Asked, Options
from tuning.launchers.slurm.portions import (
    Settled,
    from_report,
    left_stages,
    settled,
    submit_later,
    unblocked,
)
from tuning.plan import Plan
from tuning.runs import atomic
from tuning.runs.errors import EXIT_DONE
from tuning.runs.lock import Lock


def write_asked(folder: Path, whole: Plan, cluster: Asked, options: Options) -> None:
    """Write down what every run of the grid asks for, for the rounds to come."""
    stages = [*(stage for stage in whole.stages if stage.has_work), REPORT]
    asked = {stage.name: cluster.of(stage) for stage in stages}
    kept = {"wandb": options.wandb, "max_submit": options.max_submit}
    atomic.write_json(_path(folder), settled(asked, kept))


def submit_round(folder: Path) -> bool:
    """Submit the next round from within a job, if this is a search; what goes wrong is printed.
    False if it has to be tried again.
    """
    return submit_later(_path(folder), "tuning.launchers.slurm.rounds", folder, "round")


def _path(folder: Path) -> Path:
    return folder / "slurm" / "search.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Submit the next round; the exit code, EXIT_AGAIN to be run again."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    with Lock(folder).holding():
        words, code = _submitted(folder)
    print(f"next round: {words}")
    return code


def _submitted(folder: Path) -> tuple[str, int]:
    """Decide the next round and submit it; what was done, in words, and the exit code."""
    from tuning.experiments.search import Rounds
    from tuning.launchers.slurm.client import Slurm
    from tuning.launchers.slurm.submission import Submission

    rounds, asked = Rounds.recorded(folder), atomic.read_object(_path(folder))
    now = Plan.from_json(atomic.read_object(folder / "plan.json") or {})
    if rounds is None or asked is None or "search" not in now.about:
        return "the experiment is no search any more", EXIT_DONE
    slurm, jobs = Slurm(), Jobs(folder)
    broken = _broken(jobs)
    if left_stages(folder) or (not broken and _goes_on(slurm, jobs)):
        return "this one goes on", EXIT_DONE
    if rounds.last.end:
        return "the search is over", EXIT_DONE
    plan = rounds.plan
    while not (new := {*_new(plan, jobs), *broken}):
        more = rounds.advance()
        print("\n".join(rounds.told()), flush=True)
        if more is None:
            return "the search is over", EXIT_DONE
        plan = more
    options = Options(**asked["options"], only=frozenset(new))
    return from_report(Submission(plan, Settled(asked), slurm, options))


def _broken(jobs: Jobs) -> list[str]:
    """The stages of a submission that was interrupted, whose jobs SLURM may hold or not know."""
    return [name for array in jobs.arrays() if not array.released for name in array.stages]


def _goes_on(slurm: Any, jobs: Jobs) -> bool:
    """Whether a job of the experiment waits or runs, but for reports."""
    tokens = {array.token for array in jobs.arrays() if array.kind != REPORT.kind}
    return any(job.live and job.token in tokens for job in slurm.queue(jobs.users()))


def _new(plan: Plan, jobs: Jobs) -> set[str]:
    """The stages that are not done, were never submitted as they are now, and start from none that
    failed.
    """
    from tuning.experiments.search import pending

    keys = {name: task.key for name, task in jobs.latest().items()}
    left = {stage.name: stage for stage in pending(plan)}
    fresh = [name for name, stage in left.items() if keys.get(name) != stage.key]
    ended = {stage.name for stage in plan.stages if stage.name not in left}
    return unblocked(plan.stages, fresh, ended)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
