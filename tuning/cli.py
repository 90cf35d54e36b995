"""`tuning`: submit, monitor and manage experiments.

    tuning submit ...                  submit an experiment as SLURM jobs, or run it here
    tuning status [EXPERIMENT]         show the state of its stages
    tuning logs RUN [-f]               print the log of a stage
    tuning cancel EXPERIMENT           cancel its jobs
    tuning report [EXPERIMENT]         rewrite the report and print its table
    tuning prefetch ...                make its datasets, download its models, for offline jobs
    tuning clean                       remove files that nothing needs

`submit` and `prefetch` take the flags of run_sweetspot_pipeline.py (--total_data ...), those of
slurm/run.sh (--sft_ratio --train_sizes ...), or a YAML file that holds either.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tuning import config as site
from tuning.flags import Parser
from tuning.plan import Plan
from tuning.runs.atomic import read_object
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import FORMAT
from tuning.runs.interrupt import quits

_STOPPED = {
    name: f"stopped; the same command {does} the rest"
    for name, does in (("cancel", "cancels"), ("clean", "removes"))
}
"""What commands that change something say at Ctrl-C; those that only show something are quiet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["submit"]:
        from tuning.submit import main as submit

        return submit(words[1:])
    if words[:1] == ["prefetch"]:
        from tuning.submit import prefetch

        return prefetch(words[1:])
    args = _parser().parse_args(words)
    command: Callable[..., int] = args.call
    with quits(_STOPPED.get(args.command, "")):
        return command(args)


def _parser() -> Parser:
    made = Parser(prog="tuning", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("submit", "submit an experiment"),
        ("prefetch", "make its datasets, download its models"),
    ):
        commands.add_parser(name, help=f"{text}; see tuning {name} --help")
    status = _command(commands, "status", "show the state of the stages", _status)
    _add_experiment(status)
    status.add_argument(
        "--watch", action="store_true", help="refresh every 5 s until all have ended"
    )
    status.add_argument("--json", action="store_true", help="print JSON, for scripts")
    logs = _command(commands, "logs", "print the log of a stage", _logs)
    logs.add_argument("run", help="the name of a stage, or a unique part of it")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing as the log grows")
    logs.add_argument("--experiment", help="default: the newest with such a stage")
    cancel = _command(commands, "cancel", "cancel the jobs of an experiment", _cancel)
    cancel.add_argument("experiment", help="its name")
    cancel.add_argument("--stage", help="only this stage and its descendants")
    _add_experiment(_command(commands, "report", "rewrite a report and print its table", _report))
    clean = _command(commands, "clean", "remove files that nothing needs", _clean)
    clean.add_argument(
        "--dry_run", action="store_true", help="print what would be removed, remove nothing"
    )
    clean.add_argument(
        "--orphans", action="store_true", help="also runs and outputs that are in no experiment"
    )
    return made


def _command(commands: Any, name: str, text: str, run: Callable[..., int]) -> Parser:
    made: Parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    made.set_defaults(call=run)
    return made


def _add_experiment(parser: Parser) -> None:
    parser.add_argument("experiment", nargs="?", help="default: the newest")


def _written() -> dict[str, dict[str, Any]]:
    """plan.json of every experiment by its name, the newest last."""
    paths = site.reports_dir().glob("*/plan.json")
    newest_last = sorted(paths, key=lambda path: path.stat().st_mtime)
    found = {}
    for path in newest_last:
        try:
            found[path.parent.name] = read_object(path) or {}
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
    return found


def _plans() -> dict[str, Plan]:
    """Every experiment of this version by its name, the newest last; UserError if there is none."""
    found = {
        name: Plan.from_json(value)
        for name, value in _written().items()
        if value.get("format") == FORMAT
    }
    if not found:
        raise UserError(f"there is no experiment under {site.reports_dir()}.")
    return found


def _plan(name: str | None) -> Plan:
    """An experiment by its name, or the newest."""
    if name is None:
        return list(_plans().values())[-1]
    written = _written()
    return Plan.from_json(written[choose("experiment", name, written)])


def _report(args: argparse.Namespace) -> int:
    from tuning.launchers.slurm import usage
    from tuning.launchers.slurm.client import Slurm
    from tuning.manage.status import stages_of, states
    from tuning.report.build import write_report

    plan = _plan(args.experiment)
    usage.update(site.reports_dir() / plan.experiment, Slurm())
    print(write_report(plan, site.home(), states(stages_of(plan, site.home()))))
    return 0


def _status(args: argparse.Namespace) -> int:
    from tuning.manage.commands import status

    plan = _plan(args.experiment)
    return status(plan, watch=args.watch, as_json=args.json)


def _logs(args: argparse.Namespace) -> int:
    from tuning.manage.commands import logs

    plans = _plans()
    if args.experiment:
        name = choose("experiment", args.experiment, plans)
        plans = {name: plans[name]}
    return logs(list(plans.values()), args.run, follow=args.follow)


def _cancel(args: argparse.Namespace) -> int:
    from tuning.manage.commands import cancel

    return cancel(_plan(args.experiment), args.stage)


def _clean(args: argparse.Namespace) -> int:
    from tuning.manage.commands import clean

    return clean(dry_run=args.dry_run, orphans=args.orphans)


def console() -> None:
    """The `tuning` command."""
    from tuning.entry import run

    run(main)


if __name__ == "__main__":
    console()
