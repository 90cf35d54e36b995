"""What a submission says that it did: every stage with its job, and what the jobs ask for."""

from __future__ import annotations

import sys

from tuning import config as site
from tuning.launchers import footprint
from tuning.launchers.slurm import usage
from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.outcome import Asked, Outcome
from tuning.launchers.slurm.resources import Resources
from tuning.launchers.slurm.shared import told_to_followers
from tuning.plan import Plan
from tuning.report.build import write_report


def print_submitted(plan: Plan, cluster: Asked, outcome: Outcome) -> None:
    """Print what a submission did, stage by stage; the report, where everything is done."""
    if not (outcome.new or outcome.queued or outcome.left or outcome.shared):
        print(
            f"experiment {plan.experiment}: all stages are done, nothing to submit", file=sys.stderr
        )
        usage.update(site.reports_dir() / plan.experiment, Slurm())
        print(write_report(plan, site.home()))
        return
    print(f"experiment {plan.experiment}")
    for stage in (stage for stage in plan.stages if stage.has_work):
        _print_stage(stage.name, outcome)
    if outcome.new:
        new = [stage for stage in plan.stages if stage.name in outcome.new]
        asked = dict.fromkeys((stage.kind, cluster.of(stage)) for stage in new)
        for kind, resources in asked:
            print(f"  {kind}: {describe(resources)}")
        cuda = any("gpu" in (resources.gres or "") for _, resources in asked) or None
        print(footprint.describe(footprint.estimate(plan, site.home(), cuda=cuda)))
    if outcome.left:
        when = "when these have ended" if outcome.goes_on else "once jobs of yours have ended"
        who = "the last of these jobs submits them" if outcome.goes_on else "submit again"
        print(
            f"{len(outcome.left)} stages are left, since no more jobs may be queued at a time: "
            f"{who} {when}; the same command does so as well"
        )
    if outcome.replaced and (note := told_to_followers(site.reports_dir() / plan.experiment)):
        print(note)
    print(f"follow with: tuning status {plan.experiment} --watch")


def _print_stage(name: str, outcome: Outcome) -> None:
    """What was done about a stage, its job, and what is to be said of it."""
    task = outcome.new.get(name) or outcome.queued.get(name)
    state = "submitted" if name in outcome.new else "queued" if task else "done"
    note = ""
    if name in {stage.name for stage in outcome.left}:
        state = "later"
    elif name in outcome.shared:
        task, state = outcome.shared[name].task, "queued"
        note = f"  (by experiment {outcome.shared[name].experiment})"
    elif name in outcome.replaced:
        note = f"  (replaces {outcome.replaced[name].id}, which asked for other resources)"
    elif name in outcome.outdated:
        note = "  (runs on with the resources that it has)"
    print(f"  {state:>9}  {task.id if task else '':>8}  {name}{note}")


def describe(resources: Resources) -> str:
    """The resources of a job, in one line."""
    parts = [
        f"{resources.nodes} nodes" if resources.nodes > 1 else "",
        f"{resources.processes} processes per node" if resources.processes > 1 else "",
        f"{resources.cpus} cores",
        resources.gres or "no GPU",
        resources.mem or "",
        f"{resources.time} per start" if resources.time else "default time limit",
        f"partition {resources.partition}" if resources.partition else "",
        f"in {resources.container}" if resources.container else "",
        " ".join(resources.options),
    ]
    return ", ".join(filter(None, parts))
