"""`tuning`: commands about experiments as a whole. Imports nothing heavy.

tuning report [EXPERIMENT]    write the report anew and print its table
"""

from __future__ import annotations

from collections.abc import Sequence

from tuning import config as site
from tuning.flags import Parser
from tuning.runs.atomic import read_json
from tuning.runs.errors import UserError, choose
from tuning.runs.stages import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the command."""
    parser = Parser(prog="tuning", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="write a report anew and print its table")
    report.add_argument("experiment", nargs="?", help="the newest, unless one is named")
    args = parser.parse_args(argv)
    return _report(args.experiment)


def _report(name: str | None) -> int:
    from tuning.report.build import write_report

    root = site.reports_dir()
    plans = sorted(root.glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise UserError(f"there is no experiment under {root}.")
    names = [path.parent.name for path in plans]
    chosen = choose("experiment", name, names) if name else names[-1]
    print(write_report(Plan.from_json(read_json(root / chosen / "plan.json") or {}), site.home()))
    return 0


def console() -> None:
    """The `tuning` command."""
    from tuning.entry import run

    run(main)


if __name__ == "__main__":
    console()
