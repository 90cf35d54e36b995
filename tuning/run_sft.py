"""Supervised fine-tuning of a base model, with sweetspot checkpoints where perplexity thresholds or
pass@k targets are given.

    python tuning/run_sft.py --model tiny --dataset arith --task math --train_size 2000 \\
        --do_training --do_inference --do_evaluation

Writes TUNING_HOME/models/{run}/ (the adapter in model/, sweetspots in checkpoint-sweetspot-*/) and
TUNING_HOME/outputs/{task}/{run}/ (responses.jsonl, scores.json). Run again, it resumes
and skips finished phases. With --trainer engine all weights are trained, on one or more ranks:

    torchrun --nproc_per_node 2 tuning/run_sft.py --trainer engine --model tiny --dataset arith \\
        --task math --train_size 2000 --learning_rate 2e-3 --do_training
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning import config as site
from tuning.flags import Parser, add_flags, given

if TYPE_CHECKING:
    from tuning.phases.work import Work
    from tuning.runs.rundir import RunDirectory


def parser() -> Parser:
    """The flags: what to train on, what to do, and every setting."""
    from tuning.evaluation.config import PassAtKConfig
    from tuning.phases.options import add_data, add_options
    from tuning.training.config_training import SFT_PARTS

    made = Parser(prog="run_sft.py", description=__doc__)
    add_data(made)
    made.add_argument("--train_size", required=True, type=int, help="SFT examples")
    add_options(made)
    for part in (*SFT_PARTS, PassAtKConfig):
        add_flags(made, part)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    from tuning.phases.work import planned

    carry_out(planned(argv, "sft") or described(parser().parse_args(argv)))
    return 0


def carry_out(work: Work) -> RunDirectory:
    """Train, sample and score, as far as that is asked for and not done yet; returns the directory
    of the run.
    """
    from tuning.phases.before_after import BeforeAfter
    from tuning.phases.evaluate import check_evaluation, check_pass_at_k, evaluate_run
    from tuning.phases.train import not_trained, training_phase
    from tuning.phases.tune import tune_only, tuned, tunes_only
    from tuning.runs import interrupt, ranks
    from tuning.runs.rundir import RunDirectory, locate
    from tuning.training import backend
    from tuning.training.config import require_shared
    from tuning.training.render import sft_command
    from tuning.weights.base import require_base

    config, options = work.run, work.options
    if work.evaluation:
        check_evaluation(work.evaluation, work.options)
    if options.do_training:
        config.loss.own_function()
        backend.require(config.model)
        check_pass_at_k(config)
    require_base(config.model)
    site.require_writable_home()
    interrupt.install()
    identity = config.identity(work.name)
    directory = RunDirectory(locate(site.models_dir(), work.name, config.hash))
    if processes := tunes_only():
        if options.do_training:
            require_shared(config, processes)
            tune_only("sft", config, identity, options, processes)
        return directory
    measures = BeforeAfter(config, config.train_size, options, work.evaluation)
    if options.do_training:
        require_shared(config, ranks.world_size())
        measures.before(directory)
        with training_phase(identity, options) as training:
            directory = training.directory
            if not training.done:
                backend.begin(config)
                with tuned("sft", config, training.directory, options) as run:
                    backend.trainer_of(run)(run, directory, list(training.report_to))
        if work.evaluation or options.before_after:
            backend.leave()
    if work.evaluation and ranks.is_first():
        if not directory.done("train"):
            raise not_trained(directory, sft_command(config))
        evaluate_run(work.evaluation, directory, options)
    measures.after(directory, identity)
    return directory


def described(args: argparse.Namespace) -> Work:
    """The work that a command line describes."""
    from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
    from tuning.phases.options import held_out_given, options_of
    from tuning.phases.work import Work
    from tuning.training.config_training import SFT_PARTS, sft_config

    options, held_out = options_of(args), held_out_given(args, args.evaluate_before)
    config = sft_config(
        model=args.model,
        dataset=args.dataset,
        task=args.task,
        train_size=args.train_size,
        values=given(args, SFT_PARTS),
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
    return work if held_out is None else work.measured(held_out, config.perplexity.validation_size)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
