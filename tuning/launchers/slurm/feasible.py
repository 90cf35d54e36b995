"""Whether the cluster could ever run what is asked of it, before and after it is submitted.

sbatch accepts a held job that no node could run. So each script is tried with `sbatch --test-only`
first; SLURM says only that the configuration is not available, so the figures of the nodes tell
which setting is too large. What merely cannot be had now, because nodes are down, is submitted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from tuning.launchers.slurm.client import WAITS, Job, Node, Refused
from tuning.launchers.slurm.ledger import Task
from tuning.launchers.slurm.reasons import needs_change, setting_of
from tuning.launchers.slurm.resources import Resources
from tuning.runs.errors import StageFailed

CONFIGURATION = "node configuration is not available"
"""What SLURM says both where no node is large enough and where those that are are down."""
LOOK_SECONDS = 1.5
"""How long SLURM may take to look at jobs that were just released."""
_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


class Asked(Protocol):
    """What is asked of SLURM."""

    def refusal(self, script: str, *, policy: bool = False) -> str: ...
    def nodes(self) -> list[Node]: ...
    def queue(self, users: Iterable[int] = ()) -> list[Job]: ...


def require_possible(
    slurm: Asked, kind: str, resources: Resources, script: str, *, policy: bool = False
) -> None:
    """Raise Refused, naming the setting and the kind of stage, for what could never run; `policy`:
    also for what a policy is against.
    """
    refusal = slurm.refusal(script, policy=policy)
    if not refusal:
        return
    reason = ""
    if CONFIGURATION in refusal:
        nodes = _of_partition(slurm.nodes(), resources.partition)
        large = [node for node in nodes if not _lacking(resources, [node])]
        up = [node for node in large if node.up]
        if len(up) < resources.nodes <= len(large):
            return
        reason = _lacking(resources, nodes) or _too_many(resources, nodes)
    elif "policy" not in refusal and (name := setting_of(refusal)):
        value = getattr(resources, name)
        reason = (f"{name} is {value}" if value else f"{name} is not given") + _change(name)
    raise Refused(
        f"SLURM cannot run stages of kind {kind}: {reason or _everything(resources)}. Nothing was "
        f"submitted. SLURM says: {refusal}."
    )


def warnings(slurm: Asked, tasks: Iterable[Task]) -> list[str]:
    """A line for each reason for which tasks that were just submitted cannot start as they are."""
    ids = {task.id for task in tasks}
    until = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            jobs = [job for job in slurm.queue() if job.id in ids]
        except StageFailed:
            return []
        unseen = any(job.state in WAITS and job.reason == "None" for job in jobs)
        if not unseen or time.monotonic() > until:
            break
        time.sleep(0.2)
    found: dict[str, list[str]] = {}
    for job in jobs:
        if problem := needs_change(job):
            found.setdefault(problem, []).append(job.id)
    return [
        f"{', '.join(waiting[:3])}{' ...' if len(waiting) > 3 else ''} cannot start: "
        f"{problem} (flags, or cluster.yaml) and submit again"
        for problem, waiting in found.items()
    ]


def _of_partition(nodes: Sequence[Node], partition: str | None) -> list[Node]:
    """The nodes of the partitions that are asked for, each once a partition."""
    names = partition.split(",") if partition else []
    return [n for n in nodes if (n.partition in names if names else n.default)]


def _lacking(asked: Resources, nodes: Sequence[Node]) -> str:
    """What none of the nodes has; "" if nothing or unknown."""
    if not nodes:
        return ""
    where = f"no node of partition {', '.join(dict.fromkeys(n.partition for n in nodes))}"
    cores = max(node.cpus for node in nodes)
    if asked.cpus > cores:
        return f"cpus is {asked.cpus}, and {where} has more than {cores}{_change('cpus')}"
    memory = max(node.mem for node in nodes)
    if (_megabytes(asked.mem) or 0) > memory:
        return f"mem is {asked.mem}, and {where} has more than {memory}M{_change('mem')}"
    for name, count in generic(asked.gres or "").items():
        most = max(generic(node.gres).get(name, 0) for node in nodes)
        if count > most:
            has = f"more than {name}:{most}" if most else name
            return f"gres is {asked.gres}, and {where} has {has}{_change('gres')}"
    return ""


def _too_many(asked: Resources, nodes: Sequence[Node]) -> str:
    if nodes and asked.nodes > len(nodes):
        return f"nodes is {asked.nodes}, and the partition has {len(nodes)}{_change('nodes')}"
    return ""


def _change(name: str) -> str:
    return f"; change {name} (--{name}, or in cluster.yaml)"


def _everything(asked: Resources) -> str:
    """All that is asked for, where it is not known what is too much."""
    names = ("partition", "account", "qos", "nodes", "cpus", "mem", "gres", "constraint", "time")
    given = [f"{name} {value}" for name in names if (value := getattr(asked, name))]
    return f"no node can give {', '.join([*given, *asked.options])} (flags, or cluster.yaml)"


def _megabytes(memory: str | None) -> int | None:
    """`32G` in megabytes; None where it is not a size."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", memory or "", re.IGNORECASE)
    return int(int(found[1]) * _UNITS[found[2].upper() or "M"]) if found else None


def generic(text: str) -> dict[str, int]:
    """How many of each generic resource `gpu:a100:4(S:0-1),gpu:2` names, with and without types."""
    found: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = part.removeprefix("gres/").replace("=", ":").split(":")
        count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
        for key in (name, *(f"{name}:{kind}" for kind in rest)):
            if name:
                found[key] = found.get(key, 0) + count
    return found
