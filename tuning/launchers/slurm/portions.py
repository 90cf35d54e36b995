"""Submits a plan in portions, where a cluster limits how many jobs of a user it takes at once.

    python -m tuning.launchers.slurm.portions REPORT_FOLDER

submits what the last submission of an experiment left in slurm/rest.json. The report, the last job
of a portion, runs this in the code and with the resources of the first portion. Stages below one
that failed are left out: they wait for the user, who submits again. Where other jobs of the user
leave no room, the report goes back into the queue, which takes no room, and tries again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.flags import restore
from tuning.launchers.slurm.client import TooMany
from tuning.launchers.slurm.resources import Resources
from tuning.plan import Plan, Stage, require_format
from tuning.runs import atomic
from tuning.runs.errors import EXIT_AGAIN, EXIT_DONE
from tuning.runs.identity import FORMAT
from tuning.runs.interrupt import CONTAINER_VARIABLE
from tuning.runs.json_text import NotJSON
from tuning.runs.lock import Lock

if TYPE_CHECKING:
    from tuning.launchers.slurm.submission import Submission

KEPT = ("SLURM_CONF", "SLURM_JWT")
"""Variables of SLURM that do not come from the job."""


def write_rest(
    folder: Path, left: Sequence[Stage], asked: Mapping[str, Resources], options: Mapping[str, Any]
) -> None:
    """Write down which stages are still to be submitted and what for; nothing if there are none."""
    path = _path(folder)
    if not left:
        path.unlink(missing_ok=True)
        return
    names = [stage.name for stage in left]
    atomic.write_json(path, {"stages": names, **settled(asked, options)})


def settled(asked: Mapping[str, Resources], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a job needs to submit stages later as they are asked for now; `Settled` reads it."""
    distinct = list(dict.fromkeys(asked.values()))
    return {
        "format": FORMAT,
        "options": dict(options),
        "python": sys.executable,
        "resources": [asdict(resources) for resources in distinct],
        "asked": {name: distinct.index(resources) for name, resources in asked.items()},
    }


def left_stages(folder: Path) -> list[str]:
    """The stages that are still to be submitted."""
    return list((atomic.read_object(_path(folder)) or {}).get("stages", []))


def forget(folder: Path, names: Collection[str]) -> list[str]:
    """Leave stages out of the next portions; those that were in them. Hold the lock of `folder`."""
    rest = atomic.read_object(_path(folder)) or {"stages": []}
    dropped = [name for name in rest["stages"] if name in names]
    if dropped:
        kept = [name for name in rest["stages"] if name not in names]
        atomic.write_json(_path(folder), rest | {"stages": kept})
    return dropped


def _path(folder: Path) -> Path:
    return folder / "slurm" / "rest.json"


def unblocked(stages: Sequence[Stage], chosen: Collection[str], going: Collection[str]) -> set[str]:
    """Those of `chosen` whose parents all go: are done or queued, or are chosen themselves."""
    known: set[str] = set()
    for stage in stages:
        chosen_or_row = not stage.has_work or stage.name in chosen
        goes = stage.has_work and stage.name in going
        if goes or (chosen_or_row and known.issuperset(stage.parents)):
            known.add(stage.name)
    return known & set(chosen)


class Settled:
    """The resources that stages asked for when the first portion was submitted."""

    def __init__(self, rest: Mapping[str, Any]) -> None:
        self._resources = [restore(Resources, values) for values in rest["resources"]]
        self._asked: dict[str, int] = rest["asked"]

    def of(self, stage: Stage) -> Resources:
        """The resources of a stage."""
        return self._resources[self._asked[stage.name]]


def submit_rest(folder: Path) -> bool:
    """Submit the next portion from within a job, if there is one; what goes wrong is printed. False
    if it has to be tried again.
    """
    return submit_later(_path(folder), "tuning.launchers.slurm.portions", folder, "portion")


def submit_later(file: Path, module: str, folder: Path, what: str) -> bool:
    """Run a module that submits, as the Python that submitted first, if there is the file that it
    needs; False if it asks to be run again.
    """
    try:
        rest = atomic.read_object(file)
        if rest is not None:
            python = str(rest.get("python") or sys.executable)
            words = [python, "-P", "-m", module, str(folder)]
            done = subprocess.run(words, env=_environment(), stdin=subprocess.DEVNULL, check=False)
            return done.returncode != EXIT_AGAIN
    except (OSError, NotJSON) as error:  # the report must be written
        print(f"error: the next {what} was not submitted: {error}; submit again", flush=True)
    return True


def from_report(submission: Submission) -> tuple[str, int]:
    """Submit from within the report, whose experiment's lock is held: what was done, in words, and
    the exit code, EXIT_AGAIN where other jobs leave no room. TooMany where there are no other jobs.
    """
    try:
        outcome = submission.submit()
    except TooMany as refusal:
        if submission.slurm.count() < 2:  # it is this report
            raise
        return str(refusal), EXIT_AGAIN
    words = f"{len(outcome.new)} stages submitted, {len(outcome.left)} remain"
    if outcome.left and not outcome.follows:
        return f"{words}; other jobs of yours leave no room for more now", EXIT_AGAIN
    return words, EXIT_DONE


def _environment() -> dict[str, str]:
    """The environment without what this job and its script put there: new jobs inherit it."""
    from tuning.launchers.prefetch import offline_environment

    own = {CONTAINER_VARIABLE, *offline_environment()}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in own and (name in KEPT or not name.startswith("SLURM_"))
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Submit the next portion; the exit code, EXIT_AGAIN to be run again."""
    from tuning.launchers.slurm.client import Slurm
    from tuning.launchers.slurm.outcome import Options
    from tuning.launchers.slurm.submission import Submission

    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    with Lock(folder).holding():
        rest = atomic.read_object(_path(folder))
        if rest is None:
            print("next portion: everything was submitted meanwhile")
            return EXIT_DONE
        require_format(rest, f"'{_path(folder)}'")
        plan = Plan.from_json(atomic.read_object(folder / "plan.json") or {})
        options = Options(**rest["options"], only=frozenset(rest["stages"]))
        words, code = from_report(Submission(plan, Settled(rest), Slurm(), options))
    print(f"next portion: {words}")
    return code


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
