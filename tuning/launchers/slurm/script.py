"""Renders the job script of an array of stages from its resources; a pure function."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tuning.launchers.slurm.resources import Resources
from tuning.runs.interrupt import CONTAINER_VARIABLE

COMMENT = "tuning:"
"""The comment of every job of ours is this and its token."""

STOPPED_IN_SETUP = (
    "asked to stop while the set-up lines of cluster.yaml ran; if they need that long, raise time"
)
"""What a job says that gets the warning signal before its stage has started, and ends."""
ENDED_IN_SETUP = "cancelled or preempted while the set-up lines of cluster.yaml ran; submit again"
"""What a job says that is told to end before its stage has started."""


@dataclass(frozen=True, kw_only=True)
class ArrayJob:
    """Stages with equal resources that one call of sbatch submits; task i runs the i-th of them."""

    token: str
    """Identifies the array among all that were ever submitted: `{experiment}.{number}.{kind}`, with
    `-{part}` if there are several of a kind.
    """
    count: int
    """The number of tasks."""
    code: Path
    """The snapshot of the code that it runs."""
    tasks: Path
    """The file that lists the stages by task number."""
    output: Path
    """The folder for the output of the job itself; the stage has its own log."""
    folders: tuple[str, ...] = ()
    """What every container has to see."""
    environment: Mapping[str, str] = field(default_factory=dict)


def render(job: ArrayJob, resources: Resources) -> str:
    """The script of an array: #SBATCH lines, environment, set-up lines, the stage."""
    directives = "\n".join(f"#SBATCH {option}" for option in options(job, resources))
    environment = {**job.environment, **_contained(job, resources)}
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())
    )
    setup = "".join(f"{line}\n" for line in resources.setup)
    if setup:
        traps = _trap(STOPPED_IN_SETUP, "USR1") + _trap(ENDED_IN_SETUP, "TERM")
        setup = f"\n# set-up lines of cluster.yaml\n{traps}{setup}"
    return (
        f"#!/usr/bin/env bash\n{directives}\nset -eo pipefail\n\n{exports}\n{setup}\n"
        f'exec bash "$TUNING_CODE/slurm/stage.sbatch" --tasks {shlex.quote(str(job.tasks))}\n'
    )


def _trap(said: str, name: str) -> str:
    """A line that answers a signal."""
    action = shlex.quote(f'echo "error: {said}" >&2; exit 1')
    return f"trap {action} {name}\n"


def _contained(job: ArrayJob, resources: Resources) -> dict[str, str]:
    """The variable that says how Python is started in the container of a stage. The supervisor
    stays outside, where SLURM's commands are: it requeues the job and lets forks go.
    """
    if not resources.container:
        return {}
    mounts = [*job.folders, *resources.mounts]
    if resources.container_runtime == "pyxis":
        listed = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        start = ["srun", f"--container-image={resources.container}", f"--container-mounts={listed}"]
    else:
        binds = (word for mount in mounts for word in ("--bind", mount))
        start = [resources.container_runtime, "exec", "--nv", *binds, resources.container]
    return {CONTAINER_VARIABLE: shlex.join([*start, resources.python or "python3"])}


def options(job: ArrayJob, resources: Resources) -> list[str]:
    """The options of sbatch, as in the #SBATCH lines."""
    throttle = f"%{resources.throttle}" if resources.throttle else ""
    asked = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "gres": resources.gres,
        "constraint": resources.constraint,
        "mem": resources.mem,
        "time": resources.time,
    }
    output = str(job.output / f"{job.token}-%a.out")
    return [
        f"--job-name={_name(job.token)}",
        f"--comment={COMMENT}{job.token}",
        f"--array=0-{job.count - 1}{throttle}",
        f"--output={_quoted(_escaped(job.output, output))}",
        "--open-mode=append",
        "--hold",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        f"--signal=B:USR1@{resources.signal_seconds}",
        f"--nodes={resources.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={resources.cpus}",
        *(f"--{name}={value}" for name, value in asked.items() if value),
        *resources.options,
    ]


def _name(token: str) -> str:
    """The name of an array, `sft-trial.1`: the kind first, since squeue shows eight letters."""
    experiment, _, kind = token.rpartition(".")
    return f"{kind}-{experiment}"


def _escaped(folder: Path, path: str) -> str:
    """A path in which only the file name may contain sbatch's % patterns."""
    return str(folder).replace("%", "%%") + path[len(str(folder)) :]


def _quoted(text: str) -> str:
    return f'"{text}"'
