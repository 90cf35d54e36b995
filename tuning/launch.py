"""Launches a plan, on this machine or as SLURM jobs, with the same flags for every experiment."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.flags import Parser, add_flags, given
from tuning.plan import Plan, Stage, save_plan, standing
from tuning.runs.errors import EXIT_AGAIN, EXIT_FAILED, UserError, choose
from tuning.runs.interrupt import quits
from tuning.runs.names import require_fits

if TYPE_CHECKING:
    from tuning.experiments.search import Rounds

LAUNCHERS = ("local", "slurm")
States = Mapping[str, tuple[str, str]]
"""{stage: (state, reason)}."""
_ONE = r"(?:after\w*(?::\d+(?:_(?:\d+|\*))?(?:\+\d+)?)+|singleton)"
_DEPENDENCY = re.compile(rf"{_ONE}(?:[,?]{_ONE})*")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to launch a plan."""

    launcher: str | None = None
    dry_run: bool = False
    max_parallel: int | None = None
    wait: bool = True
    wandb: str = "off"
    dependency: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Settings for every kind of stage."""
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings for one kind of stage each."""
    max_submit: int | None = None


def add_launch_flags(parser: Parser) -> None:
    """The flags that say where and how stages run."""
    from tuning.launchers.slurm.resources import FOR_KINDS, Resources

    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--launcher",
        metavar="local|slurm",
        help="on this machine, or as SLURM jobs (default: slurm if there is a cluster, else local)",
    )
    group.add_argument(
        "--dry_run", action="store_true", help="print the stages and job scripts, start nothing"
    )
    group.add_argument(
        "--max_parallel",
        type=int,
        help="local: stages to run in parallel (default: one per GPU, or 2)",
    )
    group.add_argument(
        "--no_wait",
        action="store_true",
        help="local: fail instead of waiting if another process holds the run",
    )
    group.add_argument("--wandb", default="off", help="off, offline or online (default: off)")
    group.add_argument("--dependency", help="slurm: dependency of the first stages, afterok:123")
    group.add_argument(
        "--max_submit",
        type=int,
        metavar="JOBS",
        help="slurm: submit in portions of at most this many jobs at a time; the report, the last "
        "job of each, submits the next",
    )
    add_flags(parser, Resources, title="slurm: overrides of slurm/cluster.yaml for this submission")
    group = parser.add_argument_group("slurm: for one kind of stage, and any other option")
    group.add_argument("--resources", nargs="+", action="extend", default=[], help=FOR_KINDS)
    parser.takes_dashes("--sbatch")
    group.add_argument(
        "--sbatch",
        metavar="OPTIONS",
        help='more options of sbatch for every job, "--exclusive --mail-type=END"; added to those '
        "of cluster.yaml",
    )


def launch_options(args: argparse.Namespace) -> Launch:
    """The launch flags of a command line, checked."""
    from tuning.launchers.slurm.resources import (
        Resources,
        for_kinds,
        require_portions,
        sbatch,
    )
    from tuning.phases.options import wandb_mode

    if args.launcher is not None:
        choose("launcher", args.launcher, LAUNCHERS)
    if args.dependency is not None and not _DEPENDENCY.fullmatch(args.dependency):
        raise UserError(
            f"dependency is '{args.dependency}'; write it as sbatch does, for example afterok:123."
        )
    if args.max_parallel is not None and args.max_parallel < 1:
        raise UserError(f"max_parallel is {args.max_parallel}; it must be at least 1.")
    require_portions(args.max_submit, "max_submit")
    return Launch(
        launcher=args.launcher,
        dry_run=args.dry_run,
        max_parallel=args.max_parallel,
        wait=not args.no_wait,
        wandb=wandb_mode(args.wandb),
        dependency=args.dependency,
        resources=given(args, (Resources,)) | {"options": sbatch(args.sbatch or "")},
        kinds=for_kinds(args.resources),
        max_submit=args.max_submit,
    )


def launch(plan: Plan, options: Launch, rounds: Rounds | None = None) -> int:
    """Launch a plan, that of the first round of a search; the exit code of the command."""
    require_fits("experiment", plan.experiment)
    for stage in plan.stages:
        require_fits("run", stage.name)
    with quits("stopped; nothing was submitted"):
        launcher = launcher_of(options)
    if options.dry_run:
        from tuning.launchers.dry_run import show

        if rounds is not None:
            _to_stderr("\n".join(rounds.told()))
        with quits():
            show(plan, _submission_of(plan, options) if launcher == "slurm" else None)
        return 0
    for output in [(stage.run or {}).get("output", {}) for stage in plan.stages] or [{}]:
        site.require_writable_home(output.get("log_dir"))
    with quits("stopped; nothing was submitted"):
        _require_successor(plan)
    if engines := _engines(plan):
        _to_stderr(f"note: answers are sampled with {', '.join(engines)}; --backend says otherwise")
    if rounds is not None:
        plan = rounds.resume()
        _to_stderr("\n".join(rounds.told()))
    if launcher == "slurm":
        with quits("stopped before everything was submitted; the same command submits the rest"):
            return _submit(plan, options, rounds)
    if unused := _for_slurm_only(options):
        _to_stderr(f"note: nothing is submitted to SLURM here; not used: {', '.join(unused)}")
    return _run_here(plan, options, rounds)


def _engines(plan: Plan) -> list[str]:
    """The backends of a plan's inference, where there are several to choose from."""
    from tuning.evaluation.generators import GENERATORS

    if not GENERATORS["vllm"].installed:
        return []
    asked = (stage.evaluation or {} for stage in plan.stages if "infer" in stage.phases)
    return sorted({each["sampling"]["backend"] for each in asked if each})


def _for_slurm_only(options: Launch) -> list[str]:
    """The flags that were given and mean nothing on this machine."""
    asked = {**options.resources, "sbatch": options.resources.get("options")}
    asked |= {"resources": options.kinds, "dependency": options.dependency}
    asked |= {"max_submit": options.max_submit}
    shown = (name for name, value in asked.items() if value not in (None, "", (), {}))
    return [f"--{name}" for name in shown if name not in ("processes", "options")]


def _require_successor(plan: Plan) -> None:
    """UserError if the plan would hide another one of its name; a note on what it leaves out."""
    from tuning.manage.succession import require_successor, some

    if left := require_successor(plan, site.home()):
        _to_stderr(f"note: experiment {plan.experiment} leaves out {some(left)}, not finished yet")


def launcher_of(options: Launch) -> str:
    """The launcher that was named; else slurm if there is a cluster, and local inside a job, where
    the stages use its allocation.
    """
    from tuning.launchers.slurm.client import Slurm

    if options.launcher is not None:
        return options.launcher
    if "SLURM_JOB_ID" in os.environ:
        return "local"
    return "slurm" if Slurm().answers() else "local"


def samples_on_cuda(args: argparse.Namespace) -> bool | None:
    """Whether the stages that sample answers will all have a GPU; None: as this machine has it."""
    from tuning.evaluation.generators import automatic
    from tuning.launchers.slurm.resources import Cluster

    if automatic(cuda=True) == automatic(cuda=False):
        return None
    options = launch_options(args)
    if launcher_of(options) != "slurm":
        return None
    cluster = Cluster(options.resources, kinds=options.kinds)
    asked = [cluster.resources(kind) for kind in ("sft", "pft", "evaluation")]
    return all("gpu" in " ".join([one.gres or "", *one.options]) for one in asked)


def _run_here(
    plan: Plan, options: Launch, rounds: Rounds | None = None, failed: States | None = None
) -> int:
    """0 when every stage is done or skipped, 75 when stopped on request, 1 when one failed; of a
    search, all rounds. `failed`: the stages of earlier rounds that did.
    """
    from tuning.launchers import footprint, prefetch
    from tuning.launchers.local import LocalLauncher
    from tuning.phases.work import require_shares
    from tuning.report.build import write_report

    folder = site.reports_dir() / plan.experiment
    launcher = LocalLauncher(
        plan,
        max_parallel=options.max_parallel,
        processes=options.resources.get("processes"),
        wait=options.wait,
        wandb=options.wandb,
        environ=prefetch.needless(plan),
        failed=failed,
    )
    require_shares(_all_stages(plan, rounds), launcher.processes_of)
    save_plan(folder, plan)
    print(f"experiment {plan.experiment}: {len(plan.stages)} stages", file=sys.stderr)
    found = footprint.estimate(plan, site.home(), parallel=launcher.slots)
    if found.stays or found.unknown:
        _to_stderr(footprint.describe(found))
    states = launcher.launch()
    failed = {n: ended for n, ended in states.items() if ended[0] in ("failed", "blocked")}
    if rounds is not None and not (launcher.stopping or rounds.last.end):
        more = rounds.advance()
        _to_stderr("\n".join(rounds.told()))
        if more is not None:
            return _run_here(more, options, rounds, failed)
    print(write_report(plan, site.home(), states))
    for name in failed:
        reason = f"{states[name][1]} (log: {folder / 'logs' / name}.txt)"
        print(f"error: {name}: {reason}", file=sys.stderr)
    if launcher.stopping:
        return EXIT_AGAIN
    return EXIT_FAILED if failed else 0


def _submit(plan: Plan, options: Launch, rounds: Rounds | None = None) -> int:
    """Submit what is not done; 0 when everything is done or in the queue."""
    from tuning.launchers import prefetch
    from tuning.launchers.slurm import feasible
    from tuning.launchers.slurm.announcement import print_submitted
    from tuning.launchers.slurm.client import Slurm
    from tuning.launchers.slurm.resources import Cluster
    from tuning.launchers.slurm.rounds import write_asked
    from tuning.manage.succession import require_successor
    from tuning.phases.work import require_shares
    from tuning.runs.lock import Lock

    cluster, slurm = Cluster(options.resources, kinds=options.kinds), Slurm()
    stages = _all_stages(plan, rounds)
    require_shares(stages, lambda s: cluster.of(s).nodes * cluster.of(s).processes)
    if odd := sorted({*str(site.home())} & {*'"\\:\n'}):
        raise UserError(
            f"TUNING_HOME '{site.home()}' contains {' '.join(map(repr, odd))}, which job "
            "scripts cannot express; choose another folder."
        )
    if any(cluster.of(stage).offline for stage in plan.stages):
        absent = prefetch.missing(plan)
        if absent:
            raise UserError(
                f"{'; '.join(absent)}. Jobs run offline: download it here first with "
                "`tuning prefetch` and the same flags, or give --offline false."
            )
    submission = _submission(plan, cluster, slurm, options)
    with Lock(submission.folder).holding():
        require_successor(plan, site.home())  # again: another submission may have been under way
        if rounds is not None:
            write_asked(submission.folder, rounds.record.plan, cluster, submission.options)
        outcome = submission.submit()
    print_submitted(plan, cluster, outcome)
    if outcome.ending:
        _to_stderr(
            f"warning: {', '.join(outcome.ending)} did not end in time; if it was cancelled, "
            "submit again when it has ended"
        )
    for line in feasible.warnings(slurm, [*outcome.new.values(), *outcome.queued.values()]):
        _to_stderr(f"warning: {line}")
    return 0


def _all_stages(plan: Plan, rounds: Rounds | None) -> tuple[Stage, ...]:
    """The stages of a plan; of a search, also those that later rounds may start."""
    return (rounds.record.plan if rounds else plan).stages


def _submission(plan: Plan, cluster: Any, slurm: Any, options: Launch) -> Any:
    from tuning.launchers.slurm.outcome import Options
    from tuning.launchers.slurm.submission import Submission

    return Submission(
        plan,
        cluster,
        slurm,
        Options(
            dependency=options.dependency,
            wandb=options.wandb,
            max_submit=options.max_submit or cluster.max_submit,
        ),
    )


def summary(plan: Plan, options: Launch) -> str:
    """What launching a plan would start: how many stages of each kind, with which resources, and
    how much it writes; "" if all is done.
    """
    from tuning.launchers import footprint
    from tuning.launchers.slurm.announcement import describe
    from tuning.launchers.slurm.resources import Cluster

    slurm = launcher_of(options) == "slurm"
    queued = _submission_of(plan, options).look() if slurm else {}
    todo = [s for s in plan.stages if s.has_work and not _ended(plan, s)]
    left = [stage for stage in todo if stage.name not in queued]
    if not left:
        return ""
    cluster = Cluster(options.resources, kinds=options.kinds) if slurm else None
    lines = [f"experiment {plan.experiment}, {'as SLURM jobs' if slurm else 'on this machine'}:"]
    for kind in dict.fromkeys(stage.kind for stage in plan.stages if stage.has_work):
        own = [stage for stage in plan.stages if stage.has_work and stage.kind == kind]
        waiting = [stage for stage in own if stage in left]
        shared = sum(stage in todo for stage in own) - len(waiting)
        done = len(own) - len(waiting) - shared
        note = f", {done} of them done" if done else ""
        note += f", {shared} queued by another experiment" if shared else ""
        asked = dict.fromkeys(describe(cluster.of(stage)) for stage in waiting if cluster)
        lines.append(f"  {kind}: {len(own)} stage{'s' if len(own) > 1 else ''}{note}")
        lines += [f"    {text}" for text in asked]
    cuda = any("gpu" in (cluster.of(s).gres or "") for s in left if cluster) or None
    lines.append(footprint.describe(footprint.estimate(plan, site.home(), cuda=cuda)))
    return "\n".join(lines)


def _ended(plan: Plan, stage: Stage) -> bool:
    return standing(plan, stage, site.home()).state != "pending"


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _submission_of(plan: Plan, options: Launch) -> Any:
    """The submission of a plan to the cluster of this machine."""
    from tuning.launchers.slurm.client import Slurm
    from tuning.launchers.slurm.resources import Cluster

    cluster = Cluster(options.resources, kinds=options.kinds)
    return _submission(plan, cluster, Slurm(), options)
