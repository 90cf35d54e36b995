"""Whether a plan may take the place of another one of the same name.

An experiment has one plan.json. A plan that leaves out stages of the one before hides them: their
jobs would run unseen, their runs would be in no report. So it is refused while such stages are
queued or running. It is also refused while they are not finished, unless the other experiment was
cancelled, or the new plan is the same experiment extended: its choices cover those of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning.launchers.slurm.client import Slurm
from tuning.launchers.slurm.ledger import Jobs
from tuning.manage.status import StageStatus, stages_of
from tuning.plan import Plan, Stage
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.identity import FORMAT

LIVE = ("running", "waiting")
ENDED_WELL = ("done", "skipped")
CHOICES = (
    "dataset", "task", "models", "train_sizes", "sft_ratios", "sft_data", "rules", "methods",
    "seeds",
)  # fmt: skip
"""Choices of which an extended experiment has all of the former, and maybe more."""


def require_successor(plan: Plan, home: Path, slurm: Slurm | None = None) -> list[str]:
    """The unfinished stages that `plan` leaves out of the experiment of its name; UserError if it
    may not leave them out.
    """
    folder = home / "outputs" / "reports" / plan.experiment
    found = atomic.read_object(folder / "plan.json")
    if found is None or found.get("format") != FORMAT:
        return []  # save_plan() refuses another format
    former = Plan.from_json(found)
    gone = {stage.name for stage in former.stages if stage.has_work and not _kept(stage, plan)}
    if not gone:
        return []
    told = stages_of(former, home, slurm)
    if live := _live([entry for entry in told if entry.stage in gone], folder):
        raise UserError(
            f"experiment '{plan.experiment}' is another plan, and {some(live)}, which this one "
            "leaves out, would go on unseen. Choose another --experiment name, or cancel it first: "
            f"tuning cancel {plan.experiment}"
        )
    left = [entry.stage for entry in told if entry.stage in gone and entry.state not in ENDED_WELL]
    given_up = any(entry.state == "cancelled" for entry in told)
    if left and not given_up and not covers(plan.about, former.about):
        raise UserError(
            f"experiment '{plan.experiment}' is another plan, of which {some(left)} is not "
            "finished. Choose another --experiment name; to give the other plan up, delete "
            f"'{folder}' (its runs stay)."
        )
    return left


def covers(choices: Mapping[str, Any], former: Mapping[str, Any]) -> bool:
    """Whether an experiment of these choices has everything that one of the former ones has."""
    return all(
        entry in _listed(choices.get(name))
        for name in CHOICES
        for entry in _listed(former.get(name))
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _kept(stage: Stage, plan: Plan) -> bool:
    """Whether a plan has a stage, maybe with more or fewer phases."""
    return any(
        (stage.name, stage.hash) == (other.name, other.hash)
        and len({stage.evaluation_hash, other.evaluation_hash} - {None}) < 2
        for other in plan.stages
    )


def _live(told: Sequence[StageStatus], folder: Path) -> list[str]:
    """Those that run, or have a job of this experiment; not the held ones of a submission that was
    interrupted, which the next one cancels.
    """
    ours = {task.id for a in Jobs(folder).arrays() if a.released for task in a.tasks}
    return [e.stage for e in told if e.state in LIVE and (not e.job or e.job in ours)]


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"'{names[0]}'{more}"
