"""Options of a stage process, and the flags that all stages share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tuning.autotune.config import AutotuneConfig, add_autotune_flags, autotune_given
from tuning.evaluation.before_after import BeforeAfterConfig, HeldOutConfig
from tuning.flags import Parser, add_flags, build, command_line, given
from tuning.runs.errors import UserError, choose

WANDB_MODES = ("off", "offline", "online")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which phases a stage runs, and how."""

    do_training: bool = False
    do_inference: bool = False
    do_evaluation: bool = False
    wait: bool = True
    force: bool = False
    wandb: str = "off"
    output_dir: Path | None = None
    """The run directory; None: TUNING_HOME/models/{run_name}."""
    autotune: AutotuneConfig | None = None
    """How to tune a new run before it trains; None: not at all."""
    before_after: BeforeAfterConfig | None = None
    """What to measure before and after training; None: nothing."""
    first_prompts: int | None = None
    """Evaluate on the first so many test prompts only; None: on all."""

    @property
    def evaluates(self) -> bool:
        """Whether inference or evaluation is requested."""
        return self.do_inference or self.do_evaluation


def add_data(parser: Parser, *, model: bool = True) -> None:
    """The flags for the model, the dataset and the task."""
    if model:
        parser.add_argument(
            "--model", required=True, help="collections.yaml key, hub id or local folder"
        )
    parser.add_argument("--dataset", required=True, help="a dataset of the task")
    parser.add_argument("--task", required=True, help="math or instruction (gsm8k, ifeval)")


def add_options(parser: Parser, *, training: bool = True) -> None:
    """The flags for the phases to run, and for how."""
    group = parser.add_argument_group("what to do")
    if training:
        group.add_argument("--do_training", action="store_true", help="train, or resume training")
    group.add_argument(
        "--do_inference", action="store_true", help="sample answers to the test prompts"
    )
    group.add_argument("--do_evaluation", action="store_true", help="score the sampled answers")
    group.add_argument(
        "--first_prompts",
        type=int,
        metavar="N",
        help="sample and score the first N test prompts only; the same command without it does "
        "the rest",
    )
    add_claim_flags(group)
    if training:
        add_wandb(group)
        add_autotune_flags(parser)
        add_before_after_flags(parser)


def add_before_after_flags(parser: argparse.ArgumentParser, *, switch: bool = True) -> None:
    """--evaluate_before, unless the command has it already, and what is measured."""
    if switch:
        add_before_after_switch(parser)
    add_flags(parser, HeldOutConfig)


def add_before_after_switch(parser: argparse._ActionsContainer) -> None:
    """--evaluate_before."""
    parser.add_argument(
        "--evaluate_before",
        action="store_true",
        help="before and after training, measure perplexity, of preference tuning the implicit "
        "reward on held-out pairs, and, with --do_inference --do_evaluation, the task score",
    )


def held_out_given(args: argparse.Namespace, on: bool) -> HeldOutConfig | None:
    """What a command line says of measuring before and after; None if it is not `on`.

    UserError for settings of it where it is not.
    """
    values = given(args, (HeldOutConfig,))
    if on:
        return build(HeldOutConfig, values)
    if values:
        raise UserError(f"--{next(iter(values))} is for --evaluate_before; add it.")
    return None


def held_out_words(held_out: HeldOutConfig) -> list[str]:
    """The flags that lead to it."""
    return ["--evaluate_before", *command_line([(held_out, HeldOutConfig())])]


def add_claim_flags(group: argparse._ActionsContainer) -> None:
    """The flags for a run that is already done, or held by another process."""
    group.add_argument("--force", action="store_true", help="redo even if already done")
    group.add_argument(
        "--no_wait",
        action="store_true",
        help="fail instead of waiting if another process holds the run",
    )


def add_wandb(group: argparse._ActionsContainer) -> None:
    """The flag that reports training to Weights & Biases."""
    group.add_argument(
        "--wandb",
        default="off",
        metavar="|".join(WANDB_MODES),
        help="report training to Weights & Biases (default: off)",
    )


def wandb_mode(value: str) -> str:
    """Return the mode unchanged, or raise UserError if it is not one of WANDB_MODES."""
    return choose("--wandb mode", value, WANDB_MODES)


def options_of(args: argparse.Namespace) -> Options:
    """The options of a command line; UserError if it requests no phase."""
    chosen = Options(
        do_training=getattr(args, "do_training", False),
        do_inference=args.do_inference,
        do_evaluation=args.do_evaluation,
        wait=not args.no_wait,
        force=args.force,
        wandb=wandb_mode(getattr(args, "wandb", "off")),
        autotune=autotune_given(args, getattr(args, "autotune", False)),
        first_prompts=args.first_prompts,
    )
    first = chosen.first_prompts
    if first is not None and (first < 1 or not (chosen.do_inference and chosen.do_evaluation)):
        raise UserError(
            f"first_prompts is {first}; it must be at least 1, with --do_inference --do_evaluation."
        )
    if not (chosen.do_training or chosen.evaluates):
        flags = "--do_training, --do_inference and --do_evaluation"
        raise UserError(f"nothing to do: give one or more of {flags}.")
    return chosen
