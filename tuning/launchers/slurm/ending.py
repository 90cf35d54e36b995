"""Waits for jobs that are on their way out.

A job that saves since it was cancelled and one that goes back into the queue look the same: SLURM
says COMPLETING of both, and which it was when the job is gone. Until then nobody can know whether
its stage is to be submitted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tuning import config as site
from tuning.launchers.slurm.client import LEAVES
from tuning.launchers.slurm.ledger import REPORT, Array
from tuning.launchers.slurm.outcome import Door
from tuning.launchers.slurm.shared import tasks_of
from tuning.plan import Plan, standing
from tuning.runs.log import logger

WAIT_SECONDS = 120.0
"""How long to wait; on a node that went down, a job may be on its way out for hours."""
POLL_SECONDS = 1.0


def await_end(slurm: Door, plan: Plan, folder: Path, arrays: Sequence[Array]) -> list[str]:
    """Wait until no job of an unfinished stage of a plan, or of its report, is on its way out, be
    it a job of these arrays or of another experiment; those that still are when the time is over.
    """
    home = site.home()
    pending = [s for s in plan.stages if standing(plan, s, home).state == "pending"]
    names = {stage.name for stage in pending} | {REPORT.name}
    own = [task for array in arrays for task in array.tasks if task.stage in names]
    theirs, others = tasks_of(pending, folder)
    wanted = {(task.id, task.token) for task in (*own, *theirs)}
    users = {array.user for array in (*arrays, *others) if array.user is not None}
    until, told = time.monotonic() + WAIT_SECONDS, False
    while wanted:
        seen = [job for job in slurm.queue(users) if (job.id, job.token) in wanted]
        leaving = sorted(job.id for job in seen if job.state in LEAVES)
        if not leaving or time.monotonic() > until:
            return leaving
        if not told:
            logger.info(f"waiting for jobs that are ending: {', '.join(leaving)}")
            told = True
        slurm.pause(POLL_SECONDS)
    return []
