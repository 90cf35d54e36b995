"""`tuning submit` and `tuning prefetch`: make a plan from flags, environment variables, answers to
questions, or a YAML file.

    tuning submit --task math --dataset arith --sft_ratio 0 0.25 0.5 --base_model llama3-8B \\
        --pft_method dpo --train_sizes 1000 10000 --do_training --do_inference --do_evaluation
    tuning submit --model tiny --dataset arith --task math --total_data 3000 --sft_data 2000 \\
        --sft_data 1500 --do_sft --do_dpo --do_inference --do_evaluation
    tuning submit grid.yaml

A YAML file holds the same flags; under `grid:` each flag has a list of values, and every
combination becomes part of the experiment:

    model: tiny
    dataset: arith
    task: math
    sft_data: 2000
    do_sft: true
    grid: {total_data: [3000, 6000], seed: [1, 2, 3]}
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.experiments import questions
from tuning.experiments.choices import add_settings, settings_given
from tuning.flags import Parser, add_flags, build, given, truth
from tuning.launch import (
    Launch,
    add_launch_flags,
    launch,
    launch_options,
    launcher_of,
    samples_on_cuda,
    summary,
)
from tuning.plan import Plan
from tuning.runs.errors import UserError
from tuning.runs.interrupt import quits
from tuning.schema import mapping, read_yaml, wrong
from tuning.search.config import SearchConfig

if TYPE_CHECKING:
    from tuning.experiments.search import Rounds

PREFETCH = """Make the datasets and download the models of an experiment for nodes without network.

    tuning prefetch grid.yaml
    tuning prefetch --model llama3-8B --dataset gsm8k --task math --total_data 3000 \\
        --sft_data 1500 --do_sft --do_dpo --do_inference --do_evaluation

Takes what `tuning submit` takes: the flags below, those of a sweetspot experiment
(run_sweetspot_pipeline.py --help), or the YAML file. What is here already is not fetched again; run
it where the network and the package index are reachable, with the TUNING_HOME of the jobs or one
that is copied there.
"""
PIPELINE_FLAGS = ("--total_data", "--sft_data")
"""Flags that only a sweetspot experiment has."""


def main(words: Sequence[str]) -> int:
    """Submit an experiment; returns the exit code."""
    with quits("stopped; nothing was submitted"):
        plan, args = _plan(list(words))
        rounds = _rounds(plan, args)
        plan = rounds.plan if rounds else plan
        options = launch_options(args)
        if getattr(args, "confirm", False) and not _confirmed(plan, options):
            print("nothing was submitted", file=sys.stderr)
            return 0
    return launch(plan, options, rounds)


def _rounds(plan: Plan, args: argparse.Namespace) -> Rounds | None:
    """The search of a grid that --search asks for; UserError for settings of it without."""
    from tuning.experiments.search import Rounds

    values = given(args, (SearchConfig,), "search_")
    if getattr(args, "search", False):
        return Rounds.begin(plan, build(SearchConfig, values))
    if values:
        raise UserError(f"--search_{next(iter(values))} is for --search; add it.")
    return None


def _confirmed(plan: Plan, options: Launch) -> bool:
    """Whether a person who has seen what will be started wants it; yes if all is done."""
    shown = summary(plan, options)
    if not shown:
        return True
    print(f"\n{shown}", file=sys.stderr)
    what = "Submit these jobs" if launcher_of(options) == "slurm" else "Start these stages"
    return questions.confirmed(f"{what}? (y/N): ", _read)


def prefetch(words: Sequence[str]) -> int:
    """Make the datasets and download the hub models of an experiment; returns the exit code."""
    from tuning.launchers.prefetch import fetch

    with quits("stopped; the same command downloads the rest"):
        fetch(_plan_with_data(list(words)))
    return 0


def _plan_with_data(words: list[str]) -> Plan:
    """The plan; datasets that it needs and that are not here are made from their sources."""
    from tuning.data import loaders
    from tuning.data.command import described
    from tuning.data.preparation import prepare
    from tuning.data.prepared import NotPrepared
    from tuning.data.published import recipe_of

    while True:
        try:
            return _plan(words, _parser("tuning prefetch", PREFETCH))[0]
        except NotPrepared as missing:
            name = missing.entry.name
            made = prepare(name, recipe_of(missing.entry))
            loaders.forget()
            print(described(name, made), file=sys.stderr)


def _plan(words: list[str], parser: Parser | None = None) -> tuple[Plan, argparse.Namespace]:
    """The plan, and the parsed flags, which include how to launch it; `parser` is that of a budget
    experiment.
    """
    if words and not words[0].startswith("-"):
        return _from_file(site.expanded(words[0]), words[1:])
    flags = {"--" + word[2:].partition("=")[0].replace("-", "_") for word in words}
    if flags & set(PIPELINE_FLAGS):
        return _sweetspots(words)
    return _budget(words, parser or _parser())


def _sweetspots(words: list[str]) -> tuple[Plan, argparse.Namespace]:
    from tuning import run_sweetspot_pipeline as pipeline

    args = pipeline.parser().parse_args(words)
    return pipeline.plan_of(args), args


def _budget(words: list[str], parser: Parser) -> tuple[Plan, argparse.Namespace]:
    from tuning.experiments.budget import budget_plan

    args = parser.parse_args(words)
    person = sys.stdin is not None and sys.stdin.isatty()
    if args.prompt and _left_to_ask(args, words, person=person):
        wanted = questions.ask(_read, at_terminal=person)
        args.confirm = person and not args.yes and not args.dry_run
    else:
        wanted = questions.wanted(args, os.environ)
    plan, notes = budget_plan(replace(wanted, cuda=samples_on_cuda(args)))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return plan, args


def _left_to_ask(args: argparse.Namespace, words: Sequence[str], *, person: bool) -> bool:
    """Whether nothing says what to run: no flag at all, or, where a person can answer, only flags
    that say where and how.
    """
    if questions.given(args, os.environ):
        return False
    about_runs = args.experiment is not None or any(settings_given(args).values())
    return set(words) <= {"--prompt", "--dry_run", "--yes"} or (person and not about_runs)


def _parser(name: str = "tuning submit", description: str | None = __doc__) -> Parser:
    made = Parser(prog=name, description=description)
    questions.add_flags(made)
    made.add_argument(
        "--search",
        action="store_true",
        help="run only a part of the grid, in rounds: find the best split of each budget with a "
        "surrogate of pass@1, and stop weak runs early",
    )
    add_flags(made, SearchConfig, prefix="search_", title="how --search proceeds")
    made.add_argument("--experiment", help="the name of the experiment and its report")
    made.add_argument(
        "--prompt", action="store_true", help="ask what to run, if no flag or variable says it"
    )
    made.add_argument(
        "--yes", action="store_true", help="after the questions of --prompt, ask for no consent"
    )
    add_launch_flags(made)
    add_settings(made, rules=False)
    return made


def _read() -> str:
    """Read one line from stdin; EOFError at its end."""
    line = sys.stdin.readline() if sys.stdin else ""
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _from_file(path: Path, words: list[str]) -> tuple[Plan, argparse.Namespace]:
    """A plan of every combination under `grid:`; flags on the command line override the file."""
    from tuning.experiments.budget import merged

    flags = _flags(path)
    grid = _by_flag(mapping(flags.pop("grid", None) or {}, f"{path.name}: grid"), path.name)
    if twice := sorted(flags.keys() & grid.keys()):
        raise UserError(f"{path.name} gives {twice[0]} beside grid and under it; choose one.")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise wrong(values, f"{path.name}: grid: {name}", "a list of values")
    made = []
    for values in itertools.product(*grid.values()):
        chosen = flags | dict(zip(grid, values, strict=True))
        made.append(_plan([*_words(path, chosen), *words]))
    plans, args = [plan for plan, _ in made], made[0][1]
    return (plans[0] if len(plans) == 1 else merged(plans, args.experiment)), args


def _flags(path: Path) -> dict[str, Any]:
    """The flags in a YAML file, by name without leading dashes."""
    flags = mapping(read_yaml(path) or {}, path.name)
    if not flags:
        raise UserError(f"'{path}' holds no flags; see tuning submit --help for an example.")
    return _by_flag(flags, path.name)


def _by_flag(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by the names of their flags; UserError for one that is given twice."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.lstrip("-").replace("-", "_")
        if name in found:
            raise UserError(f"{where} gives {name} twice; leave one of them out.")
        found[name] = value
    return found


def _words(path: Path, values: dict[str, Any]) -> list[str]:
    """Flags as command-line words: switches without a value, lists as several values."""
    switches = _switches(values)
    words: list[str] = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [value]
        if not several or any(each in (None, "") or isinstance(each, dict) for each in several):
            raise wrong(value, f"{path.name}: {name}", "a value or a list")
        if name not in switches:
            words += [f"--{name}", *map(str, several)]
        elif _is_on(path, name, value):
            words.append(f"--{name}")
    return words


def _is_on(path: Path, name: str, value: Any) -> bool:
    try:
        return truth(value)
    except ValueError:
        raise wrong(value, f"{path.name}: {name}", "true or false") from None


def _switches(values: dict[str, Any]) -> set[str]:
    """The flags that take no value, for the kind of experiment that a file describes."""
    from tuning import run_sweetspot_pipeline as pipeline

    sweetspots = any(flag.removeprefix("--") in values for flag in PIPELINE_FLAGS)
    made = pipeline.parser() if sweetspots else _parser()
    return {action.dest for action in made._actions if action.nargs == 0}
