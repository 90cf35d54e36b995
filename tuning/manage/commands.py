"""The commands on experiments: status, logs, cancel, clean."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tuning import config as site
from tuning.launchers.slurm import portions
from tuning.launchers.slurm.client import Job, Slurm
from tuning.launchers.slurm.ledger import REPORT, Jobs
from tuning.launchers.slurm.shared import told_to_followers
from tuning.manage.status import ENDED, StageStatus, stages_of, table
from tuning.plan import Plan, descendants
from tuning.runs import atomic
from tuning.runs.errors import EXIT_FAILED, StageFailed, UserError, nearest
from tuning.runs.lock import Lock

WATCH_SECONDS = 5.0
POLL_SECONDS = 0.5
LINES = 10_000


def status(plan: Plan, *, watch: bool, as_json: bool) -> int:
    """Print the state of the stages; with `watch` repeatedly, until all have ended."""
    while True:
        plan = _latest(plan)
        found = stages_of(plan, site.home())
        if as_json:
            print(json.dumps([asdict(entry) for entry in found], indent=2))
        else:
            if watch and sys.stdout.isatty():
                print("\033[2J\033[H", end="")
            print(_page(plan, found), flush=True)
        ended = all(entry.state in ENDED for entry in found)
        if not watch or (ended and not _searches(plan)):
            failed = any(entry.state == "failed" for entry in found)
            return EXIT_FAILED if failed and watch else 0
        time.sleep(WATCH_SECONDS)


def _latest(plan: Plan) -> Plan:
    """The plan as it is now: a search adds to it with every round."""
    written = atomic.read_object(site.reports_dir() / plan.experiment / "plan.json")
    return Plan.from_json(written) if written and "search" in plan.about else plan


def _searches(plan: Plan) -> bool:
    """Whether a job of a search has yet to submit the next round."""
    jobs = Jobs(site.reports_dir() / plan.experiment)
    if _search(plan) in ("", "over") or not jobs.arrays():
        return False
    return bool(_live(Slurm(), jobs))


def _search(plan: Plan) -> str:
    """How far a search is; "" for any other experiment."""
    if "search" not in plan.about:
        return ""
    from tuning.search.record import Record

    record = Record.read(site.reports_dir() / plan.experiment)
    if record is None:
        return ""
    return "over" if record.rounds[-1].end else f"in round {len(record.rounds)}"


def _page(plan: Plan, found: Sequence[StageStatus]) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    counts = {
        state: sum(e.state == state for e in found)
        for state in dict.fromkeys(entry.state for entry in found)
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    report = site.reports_dir() / plan.experiment / "report.html"
    lines = [f"experiment {plan.experiment}: {summary}", "", table(found, width)]
    if search := _search(plan):
        lines[0] += f"; its search is {search}"
    if report.exists():
        lines += ["", f"report: {report}"]
    return "\n".join(lines)


def logs(plans: Sequence[Plan], run: str, *, follow: bool) -> int:
    """Print the log of a stage, from the newest experiment that has it; of a run that experiments
    share, from the one whose job it is.
    """
    plan, stage = _named(plans, run)
    same = [other for other in reversed(plans) if other is not plan and _share(plan, other, stage)]
    plan = next((each for each in (plan, *same) if _logs_of(each, stage)), plan)
    log, places = _log(plan, stage), _logs_of(plan, stage)
    if not places and not follow:
        raise UserError(f"'{stage}' has no log yet; try again later, or follow it with -f.")
    for path in places:
        print(f"==> {path}", file=sys.stderr)
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
        sys.stdout.write("\n".join(text.split("\n")[-LINES:]))
    sys.stdout.flush()
    if follow:
        _follow(log, plan, stage)
    return 0


def _log(plan: Plan, stage: str) -> Path:
    return site.reports_dir() / plan.experiment / "logs" / f"{stage}.txt"


def _logs_of(plan: Plan, stage: str) -> list[Path]:
    """The log of a stage and the output of its job in an experiment, as far as they exist."""
    folder = site.reports_dir() / plan.experiment
    task = Jobs(folder).task_of(stage)
    output = folder / "slurm" / f"{task.token}-{task.index}.out" if task else None
    return [path for path in (_log(plan, stage), output) if path is not None and path.exists()]


def _share(plan: Plan, other: Plan, name: str) -> bool:
    """Whether two experiments have a stage of this name that does some of the same work."""
    works = [set(s.work) for each in (plan, other) for s in each.stages if s.name == name]
    return len(works) == 2 and not works[0].isdisjoint(works[1])


def _follow(log: Path, plan: Plan, stage: str) -> None:
    """Print a log as it grows, until the stage has ended."""
    at = log.stat().st_size if log.exists() else 0
    look = time.monotonic()
    while True:
        if log.exists() and log.stat().st_size > at:
            with log.open("rb") as file:
                file.seek(at)
                added = file.read()
            at += len(added)
            sys.stdout.write(added.decode(errors="replace").replace("\r", "\n"))
            sys.stdout.flush()
        elif time.monotonic() > look:
            look = time.monotonic() + WATCH_SECONDS
            found = {entry.stage: entry.state for entry in stages_of(plan, site.home())}
            if found.get(stage) in ENDED:
                return
        time.sleep(POLL_SECONDS)


def _named(plans: Sequence[Plan], run: str) -> tuple[Plan, str]:
    """The stage of a name or a unique part of one."""
    for plan in reversed(plans):
        names = [stage.name for stage in plan.stages if stage.has_work]
        matches = [name for name in names if run in name]
        if run in names or len(matches) == 1:
            return plan, run if run in names else matches[0]
        if matches:
            raise UserError(
                f"'{run}' matches several stages: {', '.join(matches)}. Give more of the name."
            )
    known = [stage.name for plan in plans for stage in plan.stages if stage.has_work]
    raise UserError(f"no experiment has a stage '{run}'.{nearest(run, known)} See: tuning status")


def cancel(plan: Plan, stage: str | None) -> int:
    """Cancel the jobs of an experiment, or of a stage and its descendants."""
    folder = site.reports_dir() / plan.experiment
    with Lock(folder).holding():
        return _cancel(plan, folder, stage)


def _cancel(plan: Plan, folder: Path, stage: str | None) -> int:
    jobs = Jobs(folder)
    queued = _live(Slurm(), jobs) if jobs.arrays() else {}
    numbers = {job.token: job.number for job in queued.values()}
    for array in jobs.arrays():
        array.number = array.number or numbers.get(array.token)  # an interrupted submission
    tasks = jobs.latest()
    if stage is not None:
        name = _named([plan], stage)[1]
        chosen = {name, *descendants(plan.stages, name)}
        tasks = {key: task for key, task in tasks.items() if key in chosen}
        for left_out in portions.forget(folder, chosen):
            print(f"left out of the next portion: {left_out}")
    live = [task for task in tasks.values() if task.id in queued]
    if not live:
        print(f"experiment {plan.experiment}: no job is queued or running")
        return 0
    order = {name: at for at, name in enumerate([*(s.name for s in plan.stages), REPORT.name])}
    last_first = sorted(live, key=lambda task: order.get(task.stage, 0), reverse=True)
    slurm = Slurm()
    slurm.cancel([task.id for task in last_first])
    for task in reversed(last_first):
        print(f"cancelled {task.id:>8}  {task.stage}")
    left = _live(slurm, jobs)
    if kept := [task.id for task in live if task.id in left and left[task.id].state == "PENDING"]:
        raise StageFailed(f"SLURM did not cancel {', '.join(kept)}.")
    print("running stages save their state; `tuning submit` with the same flags resumes them")
    if note := told_to_followers(folder):
        print(note)
    return 0


def _live(slurm: Slurm, *experiments: Jobs) -> dict[str, Job]:
    """Live jobs by their ids, of everybody who submitted parts of these experiments."""
    users = {user for jobs in experiments for user in jobs.users()}
    return {job.id: job for job in slurm.queue(users) if job.live}


def clean(*, dry_run: bool, orphans: bool) -> int:
    """Remove files that nothing needs, or print what would be removed."""
    from tuning.manage import clean as cleaning

    found = cleaning.removable(site.home(), _snapshots_in_use())
    if orphans:
        found = [*found, *cleaning.orphans(site.home())]
    for left in found:
        print(f"{left.bytes / 1e6:10.1f} MB  {left.path}  ({left.why})")
    total = sum(left.bytes for left in found) / 1e6
    if dry_run or not found:
        print(f"{len(found)} items, {total:.1f} MB, could be removed; nothing was removed")
        return 0
    print(f"removed {cleaning.remove(found) / 1e6:.1f} MB")
    return 0


def _snapshots_in_use() -> set[str]:
    """The snapshots that queued or running jobs use."""
    experiments = [
        Jobs(path.parent.parent) for path in site.reports_dir().glob("*/slurm/jobs.json")
    ]
    arrays = [array for jobs in experiments for array in jobs.arrays()]
    if not arrays:
        return set()
    tokens = {job.token for job in _live(Slurm(), *experiments).values()}
    return {Path(array.code).name for array in arrays if array.token in tokens}
