"""What launching a plan would do: its stages, and the scripts of their jobs."""

from __future__ import annotations

import shlex

from tuning import config as site
from tuning.experiments.render import command
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan, standing

ARRAY_SIZE = 1001
"""SLURM's default, for a dry run without a cluster."""


def show(plan: Plan, made: Submission | None) -> None:
    """Print the stages of a plan, and the job scripts where it is to be submitted."""
    queued = made.look() if made is not None else {}
    print(f"experiment {plan.experiment}")
    for stage in plan.stages:
        if not stage.has_work:
            continue
        found = standing(plan, stage, site.home())
        state = f"{found.state} ({found.reason})" if found.reason else found.state
        if (other := queued.get(stage.name)) is not None:
            state = f"queued as {other.task.id} by experiment {other.experiment}"
        after = f"  after {', '.join(stage.parents)}" if stage.parents else ""
        print(f"\n{stage.name}  [{state}]{after}")
        print(f"    python tuning/{shlex.join(command(stage))}")
    if made is not None:
        _show_scripts(made)


def _show_scripts(made: Submission) -> None:
    """Print the arrays of a submission in their order: tasks, dependencies, scripts."""
    size = made.slurm.max_array_size() if made.slurm.answers() else ARRAY_SIZE
    if made.options.max_submit:
        print(f"\nsubmitted in portions of at most {made.options.max_submit} jobs at a time")
    for number, (array, script) in enumerate(made.preview(size), 1):
        print(
            f"\n== {number}. {array.token}: {len(array.stages)} task(s), "
            "held until all arrays are submitted"
        )
        for index, name in enumerate(array.stages):
            print(f"   task {index}: {name}  {made.words(name)}".rstrip())
        print(f"\n{script}")
