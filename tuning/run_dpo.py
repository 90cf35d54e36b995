"""Preference tuning with DPO, KTO or GRPO: from the base, after SFT, or as a fork of a sweetspot.

    python tuning/run_dpo.py --model tiny --dataset arith --task math --pft_method dpo \\
        --train_size 500 --sft_train_size 500 --do_training --do_inference --do_evaluation

Without --sft_train_size or --parent_run it starts from the base. A fork is
    --parent_run RUN --sweetspot ppl-2.0 --total_data 3000
and takes the examples that its parent left. Writes TUNING_HOME/models/{run}/ and
outputs/{task}/{run}/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.flags import Parser, add_flags, given
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    from tuning.runs.rundir import RunDirectory
    from tuning.runs.sweetspot import Sweetspot
    from tuning.training.config_training import Parent, PTRunConfig


def parser() -> Parser:
    """The flags: what to start from, what to train on, what to do, and every setting."""
    from tuning.evaluation.config import PassAtKConfig
    from tuning.training import stage
    from tuning.training.config_training import PT_PARTS

    made = Parser(prog="run_dpo.py", description=__doc__)
    stage.add_data(made)
    made.add_argument("--pft_method", default="dpo", help="dpo, kto or grpo (default: dpo)")
    made.add_argument("--train_size", type=int, help="preference examples; a fork takes none")
    start = made.add_argument_group("where to start; the base, unless one of these is given")
    start.add_argument(
        "--sft_train_size", type=int, help="the SFT run of this size, as run_sft names it"
    )
    start.add_argument("--parent_run", help="an SFT run by the name of its folder")
    start.add_argument("--sweetspot", help="fork from this sweetspot of --parent_run, e.g. ppl-2.0")
    start.add_argument("--total_data", type=int, help="the budget that SFT and the fork share")
    stage.add_options(made)
    for part in (*PT_PARTS, PassAtKConfig):
        add_flags(made, part)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the stage."""
    args = parser().parse_args(argv)
    from tuning.evaluation.config import PassAtKConfig, sampling_config
    from tuning.runs import interrupt
    from tuning.runs.sweetspot import Skipped, find_sweetspot
    from tuning.training import parents, stage
    from tuning.training.config_training import PT_PARTS, preference_config

    options = stage.options(args)
    _check_start(args)
    parent, directory = _parent(args)
    config = preference_config(
        model=args.model, dataset=args.dataset, task=args.task, pft_method=args.pft_method,
        train_size=args.train_size, parent=parent, values=given(args, PT_PARTS),
    )  # fmt: skip
    sampling = sampling_config(args.model, given(args, (PassAtKConfig,)))
    parents.require_base(config.model)
    stage.check_evaluation(args.dataset, args.task, sampling, options)
    site.require_writable_home()
    try:
        spot = None
        if directory is not None and args.sweetspot:
            spot = find_sweetspot(directory, (parent and parent.sweetspot) or "")
        size = spot.left_of(args.total_data) if spot else args.train_size
    except Skipped as reason:
        print(f"skipped: {reason}")
        return 0
    interrupt.install()
    run_directory = _train(config, directory, spot, size, options)
    if options.do_inference or options.do_evaluation:
        artifact = stage.Artifact(
            model=config.model, name=run_directory.name, hash=config.hash, run=run_directory
        )
        stage.evaluate(artifact, args.dataset, args.task, sampling, options)
    return 0


def _check_start(args: argparse.Namespace) -> None:
    if args.sft_train_size is not None and args.parent_run:
        raise UserError("give --sft_train_size or --parent_run, not both.")
    if bool(args.sweetspot) != (args.total_data is not None) or (
        args.sweetspot and not args.parent_run
    ):
        raise UserError("a fork needs all of --parent_run, --sweetspot and --total_data.")
    if args.sweetspot and args.train_size is not None:
        raise UserError(
            "a fork takes what its parent left of --total_data; leave out --train_size."
        )
    if args.total_data is not None and args.total_data < 1:
        raise UserError(f"total_data is {args.total_data}; it must be at least 1.")
    if not args.sweetspot and args.train_size is None:
        raise UserError("--train_size is missing.")


def _parent(args: argparse.Namespace) -> tuple[Parent | None, RunDirectory | None]:
    from tuning.training import parents
    from tuning.training.config_parts import ModelLoadConfig
    from tuning.training.config_training import model_config, sft_config

    if args.parent_run:
        sft, directory = parents.named_sft(args.parent_run)
        if not args.sweetspot:
            directory = parents.sft_parent(sft)
    elif args.sft_train_size is not None:
        sft = sft_config(
            model=args.model, dataset=args.dataset, task=args.task, train_size=args.sft_train_size
        )
        directory = parents.sft_parent(sft)
    else:
        return None, None
    label = parents.rule_label(sft, args.sweetspot) if args.sweetspot else None
    model = model_config(args.model, given(args, (ModelLoadConfig,)))
    parents.require_same_base(sft, model)
    return parents.parent_of(sft, directory.name, label, args.total_data), directory


def _train(
    config: PTRunConfig,
    parent: RunDirectory | None,
    spot: Sweetspot | None,
    size: int,
    options: Any,
) -> RunDirectory:
    from tuning.data import train_dataset
    from tuning.runs.rundir import RunDirectory, locate
    from tuning.training import parents, stage

    train_dataset.require(config.dataset.dataset, "preference", size, "the preference budget")
    told = {"run_name": parent.name, "hash": parent.hash} if parent else None
    if told and spot:
        told["sweetspot"] = spot.label
    identity = config.identity(config.named(size), told)
    if not options.do_training:
        directory = RunDirectory(locate(site.models_dir(), identity.run_name, identity.hash))
        command = " ".join(["python tuning/run_dpo.py", *parents.preference_flags(config)])
        stage.require_trained(directory, f"{command} --do_training")
        return directory

    def body(directory: RunDirectory, report_to: list[str]) -> None:
        import importlib

        from tuning.training.preference import Start

        module = importlib.import_module(f"tuning.training.{config.pft_method}_training")
        start = Start(parent=parent, checkpoint=spot.path if spot else None, train_size=size)
        module.train(config, directory, start, report_to)

    return stage.train(identity, body, options)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
