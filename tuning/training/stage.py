"""A stage: one run and a set of its phases, in one process. What is done is skipped; what is not,
is claimed and done.

Nothing heavy is imported before something heavy has to be done, so that a finished stage answers at
once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuning import config as site
from tuning.evaluation.config import EvaluationRunConfig
from tuning.flags import Parser
from tuning.runs import interrupt
from tuning.runs.errors import UserError, choose
from tuning.runs.rundir import Identity, RunDirectory, claim, locate, tell

WANDB_MODES = ("off", "offline", "online")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which phases a stage does, and how."""

    do_training: bool = False
    do_inference: bool = False
    do_evaluation: bool = False
    wait: bool = True
    force: bool = False
    wandb: str = "off"


def add_options(parser: Parser, *, training: bool = True) -> None:
    """The flags of every stage."""
    group = parser.add_argument_group("what to do")
    if training:
        group.add_argument("--do_training", action="store_true", help="train, or continue training")
    group.add_argument(
        "--do_inference", action="store_true", help="sample answers to the test prompts"
    )
    group.add_argument("--do_evaluation", action="store_true", help="check the answers and score")
    group.add_argument("--force", action="store_true", help="do it anew where it is done already")
    group.add_argument(
        "--no_wait", action="store_true", help="fail if another process has the run, do not wait"
    )
    if training:
        group.add_argument(
            "--wandb", default="off", metavar="|".join(WANDB_MODES),
            help="report training to Weights & Biases (default: off)",
        )  # fmt: skip


def options(args: argparse.Namespace) -> Options:
    """The options of a command line; UserError where nothing is asked for."""
    chosen = Options(
        do_training=getattr(args, "do_training", False),
        do_inference=args.do_inference,
        do_evaluation=args.do_evaluation,
        wait=not args.no_wait,
        force=args.force,
        wandb=choose("--wandb mode", getattr(args, "wandb", "off"), WANDB_MODES),
    )
    if not (chosen.do_training or chosen.do_inference or chosen.do_evaluation):
        flags = "--do_training, --do_inference and --do_evaluation"
        raise UserError(f"nothing to do: give one or more of {flags}.")
    return chosen


def train(
    identity: Identity,
    body: Callable[[RunDirectory, list[str]], None],
    options: Options,
) -> RunDirectory:
    """The training phase of a run in its directory; `body(directory, report_to)` does the work."""
    standing = RunDirectory(locate(site.models_dir(), identity.run_name, identity.hash))
    if standing.done("train") and not options.force:
        print(f"{standing.name}: already trained")
        return standing
    with claim(
        site.models_dir(), identity, wait=options.wait, force=options.force,
        check=interrupt.check, say=_say,
    ) as directory:  # fmt: skip
        if directory.done("train"):
            print(f"{directory.name}: already trained")
            return directory
        from tuning.training import wandb_run

        report_to = wandb_run.report_to(options.wandb, directory.path, identity.hash)
        with directory.phase("train"):
            body(directory, report_to)
        from tuning.runs import manifest

        manifest.drop(directory.path)
        print(f"{directory.name}: trained")
        return directory


def _say(text: str) -> None:
    print(text, flush=True)
    tell(phase="waiting", at=0, of=0, note=text, time=0.0, directory="")


def evaluate(
    config: EvaluationRunConfig, load: Callable[[], tuple[Any, Any]], options: Options
) -> None:
    """The inference and evaluation phases; `load()` gives the model and its tokenizer."""
    root = site.outputs_dir(config.task)
    wanted = [("infer", options.do_inference), ("evaluate", options.do_evaluation)]
    standing = RunDirectory(locate(root, config.run_name, config.hash))
    if all(standing.done(phase) for phase, asked in wanted if asked) and not options.force:
        print(f"{standing.name}: already evaluated")
        return
    with claim(
        root, config.identity(), wait=options.wait, force=options.force and options.do_inference,
        check=interrupt.check, say=_say,
    ) as directory:  # fmt: skip
        if options.do_inference and not directory.done("infer"):
            _infer(directory, config, load, last=False)
        if options.do_evaluation:
            _score(directory, config)


def _infer(
    directory: RunDirectory,
    config: EvaluationRunConfig,
    load: Callable[[], tuple[Any, Any]],
    *,
    last: bool,
) -> None:
    with directory.phase("infer", last=last):
        from tuning.inference.hf_engine import HFGenerator
        from tuning.inference.sampling import sample

        sample(directory, config, HFGenerator(*load()))


def _score(directory: RunDirectory, config: EvaluationRunConfig) -> None:
    if not directory.done("infer"):
        raise UserError(f"{directory.name} has no responses to evaluate; add --do_inference.")
    with directory.phase("evaluate"):
        from tuning.evaluation.scoring import score

        scores = score(directory, config)
    first = scores["pass_at_k"]["1"]
    interval = f"{first['estimate']:.3f} [{first['low']:.3f}, {first['high']:.3f}]"
    on = f"{scores['prompts']} prompts x {scores['samples']} samples"
    print(f"{directory.name}: pass@1 {interval} on {on}")


def require_trained(directory: RunDirectory, command: str) -> None:
    """Raise UserError with the command that trains a run unless it is trained."""
    if not directory.done("train"):
        raise UserError(f"run '{directory.name}' is not trained yet; make it with: {command}")
