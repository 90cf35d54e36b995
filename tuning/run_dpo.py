"""Preference tuning with DPO, KTO or GRPO: from the base, after SFT, or as a fork of a sweetspot.

    python tuning/run_dpo.py --model tiny --dataset arith --task math --pft_method dpo \\
        --train_size 500 --sft_train_size 500 --do_training --do_inference --do_evaluation

Without --sft_train_size or --parent_run it starts from the base. A fork is
    --parent_run RUN --sweetspot ppl-2.0 --total_data 3000
and trains on the rest of the budget that SFT left. Writes TUNING_HOME/models/{run}/ and
outputs/{task}/{run}/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning import config as site
from tuning.flags import Parser, add_flags, given
from tuning.methods import METHODS
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    from tuning.phases.work import Work
    from tuning.runs.rundir import RunDirectory
    from tuning.training.config_training import Parent


def parser() -> Parser:
    """The flags: what to start from, what to train on, what to do, and every setting."""
    from tuning.evaluation.config import PassAtKConfig
    from tuning.phases.options import add_data, add_options
    from tuning.training.config_training import PT_PARTS

    made = Parser(prog="run_dpo.py", description=__doc__)
    add_data(made)
    made.add_argument("--pft_method", default="dpo", help=f"{', '.join(METHODS)} (default: dpo)")
    made.add_argument("--train_size", type=int, help="preference examples; not for a fork")
    start = made.add_argument_group("where to start (default: from the base)")
    start.add_argument(
        "--sft_train_size", type=int, help="start from the default SFT run of this size"
    )
    start.add_argument("--parent_run", help="start from an SFT run, by the name of its folder")
    start.add_argument("--sweetspot", help="fork from this sweetspot of --parent_run, e.g. ppl-2.0")
    start.add_argument("--total_data", type=int, help="the budget that SFT and the fork share")
    add_options(made)
    for part in (*PT_PARTS, PassAtKConfig):
        add_flags(made, part)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    from tuning.phases.work import planned

    carry_out(planned(argv, "pft") or described(parser().parse_args(argv)))
    return 0


def carry_out(work: Work) -> RunDirectory:
    """Train, sample and score, as far as that is asked for and not done yet; returns the directory
    of the run.
    """
    from tuning.phases.before_after import BeforeAfter
    from tuning.phases.evaluate import check_evaluation, evaluate_run
    from tuning.phases.train import not_trained, training_phase
    from tuning.phases.tune import tune_only, tuned, tunes_only
    from tuning.runs import interrupt, ranks
    from tuning.runs.rundir import RunDirectory, locate
    from tuning.training import backend
    from tuning.training.config import require_shared
    from tuning.training.render import preference_command
    from tuning.training.start import start_of
    from tuning.weights.base import require_base

    config, options = work.run, work.options
    if options.do_training:
        backend.require(config.model)
    require_base(config.model)
    if work.evaluation:
        check_evaluation(work.evaluation, work.options)
    site.require_writable_home()
    start = start_of(config)
    interrupt.install()
    identity = config.identity(start.named(work.name), start.recorded)
    directory = RunDirectory(locate(site.models_dir(), identity.run_name, identity.hash))
    if processes := tunes_only():
        if options.do_training:
            require_shared(config, processes)
            tune_only("pft", config, identity, options, processes, start)
        return directory
    measures = BeforeAfter(config, start.train_size, options, work.evaluation)
    if options.do_training:
        require_shared(config, ranks.world_size())
        measures.before(directory)
        with training_phase(identity, options) as training:
            directory = training.directory
            if not training.done:
                backend.begin(config)
                with tuned("pft", config, directory, options, start) as run:
                    train = backend.trainer_of(run)
                    train(run, directory, start, list(training.report_to))
        if work.evaluation or options.before_after:
            backend.leave()
    if work.evaluation and ranks.is_first():
        if not directory.done("train"):
            raise not_trained(directory, preference_command(config))
        evaluate_run(work.evaluation, directory, options)
    measures.after(directory, identity)
    return directory


def described(args: argparse.Namespace) -> Work:
    """The work that a command line describes."""
    from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
    from tuning.phases.options import held_out_given, options_of
    from tuning.phases.work import Work
    from tuning.training.config_training import PT_PARTS, preference_config, validation_size

    options, held_out = options_of(args), held_out_given(args, args.evaluate_before)
    _check_start(args)
    config = preference_config(
        model=args.model,
        dataset=args.dataset,
        task=args.task,
        pft_method=args.pft_method,
        train_size=args.train_size,
        parent=_parent(args),
        values=given(args, PT_PARTS),
    )
    sampling = sampling_config(args.model, given(args, (PassAtKConfig,)))
    evaluation = (
        evaluation_config(
            config.model,
            dataset=args.dataset,
            task=args.task,
            sampling=sampling,
            run=config.run_name,
            run_hash=config.hash,
        )
        if options.evaluates
        else None
    )
    work = Work(options=options, run=config, name=config.run_name, evaluation=evaluation)
    return work if held_out is None else work.measured(held_out, validation_size(args.model))


def _check_start(args: argparse.Namespace) -> None:
    if args.sft_train_size is not None and args.parent_run:
        raise UserError("give --sft_train_size or --parent_run, not both.")
    if bool(args.sweetspot) != (args.total_data is not None) or (
        args.sweetspot and not args.parent_run
    ):
        raise UserError("a fork needs all of --parent_run, --sweetspot and --total_data.")
    if args.sweetspot and args.train_size is not None:
        raise UserError(
            "a fork trains on the rest of --total_data after SFT; leave out --train_size."
        )
    if args.total_data is not None and args.total_data < 1:
        raise UserError(f"total_data is {args.total_data}; it must be at least 1.")
    if not args.sweetspot and args.train_size is None:
        raise UserError("--train_size is missing.")


def _parent(args: argparse.Namespace) -> Parent | None:
    """The SFT run to start from; None for the base."""
    from tuning.sweetspots.rules import named
    from tuning.training import parents
    from tuning.training.config_training import model_config, sft_config
    from tuning.weights.config import ModelLoadConfig

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
        return None
    label = named(args.sweetspot, sft.rules, sft.run_name).label if args.sweetspot else None
    model = model_config(args.model, given(args, (ModelLoadConfig,)))
    parents.require_same_base(sft, model)
    return parents.parent_of(sft, directory.name, label, args.total_data)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
