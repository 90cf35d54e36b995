"""Why a job waits, from the reason that SLURM gives, and what to change where it cannot start as
it is. Also which setting a refusal of sbatch is about.
"""

from __future__ import annotations

import re

from tuning.launchers.slurm.client import HELD_BY_SLURM, WAITS, Job

WAITING = {
    "BeginTime": "requeued; SLURM restarts it soon",
    "None": "",
    "JobArrayTaskLimit": "limit of tasks that run at the same time",
    "Licenses": "waits for licenses",
    "ReqNodeNotAvail": "nodes not available",
}
"""What passes by itself, or is not in our hands."""

_AS_ASKED = (
    (r"BadConstraints", "no node has what it asks for", "cpus, mem, gres or constraint"),
    (r"PartitionTimeLimit", "the partition allows less time", "time or partition"),
    (r"PartitionNodeLimit", "the partition allows another number of nodes", "nodes or partition"),
    (r"PartitionConfig", "the partition cannot give what it asks for", "cpus, nodes or partition"),
    (r"PartitionDown|PartitionInactive", "the partition is down", "partition"),
    (r"(InvalidQOS|QOSNotAllowed)", "the QOS may not be used", "qos"),
    (r"(InvalidAccount|AccountNotAllowed|AccountingPolicy)", "the account may not be used",
     "account"),
    (r"(QOS|Assoc)\w*(Wall|Time)\w*", "it asks for more time than is allowed", "time or qos"),
    (r"(QOS|Assoc)(Max|Min)Cpu(?!\w*PerUser|\w*PerAcc)\w*", "the number of cores is not allowed",
     "cpus or qos"),
    (r"(QOS|Assoc)(Max|Min)Mem\w*(?<!PerUser)", "the memory is not allowed", "mem or qos"),
    (r"(QOS|Assoc)(Max|Min)GRES(?!\w*PerUser|\w*PerAcc)\w*", "the GPUs are not allowed",
     "gres or qos"),
    (r"(QOS|Assoc)(Max|Min)Node(?!\w*PerUser|\w*PerAcc)\w*", "the number of nodes is not allowed",
     "nodes or qos"),
    (r"Reservation(Deleted|Invalid)", "the reservation does not exist", "options"),
    (r"DeadLine", "its deadline has passed", "options"),
)  # fmt: skip
"""Reasons that stay as long as the job asks for what it does: pattern, words, settings."""

_REFUSALS = (
    (r"account", "account"),
    (r"partition", "partition"),
    (r"qos", "qos"),
    (r"gres|generic resource", "gres"),
    (r"feature", "constraint"),
    (r"memory", "mem"),
    (r"time ?limit|wall", "time"),
    (r"node count", "nodes"),
    (r"cpu count|cpus", "cpus"),
)


def words(job: Job, *, released: bool = True) -> str:
    """Why a job waits, for people. `released`: whether its submission was completed."""
    if job.held and not released:
        return "held; its submission was interrupted: submit again"
    if job.held:
        return f"held by a person; it goes on after: scontrol release {job.id}"
    if job.reason == "JobHeldAdmin":
        return f"held by an administrator, who can release it: scontrol release {job.id}"
    if job.held_by_slurm:
        return "SLURM could not start it and holds it: submit again to free it"
    if problem := needs_change(job):
        return f"{problem} and submit again"
    if re.match(r"Nodes required for job are|ReqNodeNotAvail", job.reason):
        return WAITING["ReqNodeNotAvail"]
    if re.match(r"(QOS|Assoc)", job.reason):
        return f"limit of the {'QOS' if job.reason.startswith('QOS') else 'account'}"
    return WAITING.get(job.reason, job.reason.lower())


def needs_change(job: Job) -> str:
    """What to change in a job that cannot start as it is; "" for one that can."""
    if job.state not in WAITS or job.reason in HELD_BY_SLURM:
        return ""
    for pattern, what, settings in _AS_ASKED:
        if re.fullmatch(pattern, job.reason):
            return f"{what} ({job.reason}): change {settings}"
    return ""


def setting_of(refusal: str) -> str:
    """The setting of cluster.yaml that a refusal of sbatch is about; "" if it does not say."""
    found = (name for words, name in _REFUSALS if re.search(words, refusal, re.IGNORECASE))
    return next(found, "")
