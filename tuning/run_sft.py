"""Supervised fine-tuning of a base model, with sweetspot checkpoints where thresholds are given.

    python tuning/run_sft.py --model tiny --dataset arith --task math --train_size 2000 \\
        --do_training --do_inference --do_evaluation

Writes TUNING_HOME/models/{run}/ (the adapter in model/, sweetspots in checkpoint-sweetspot-*/) and
TUNING_HOME/outputs/{task}/{run}/ (responses.jsonl, scores.json). Run again, it does what is
missing. With --trainer engine all weights are trained, and several processes may share the work:

    torchrun --nproc_per_node 2 tuning/run_sft.py --trainer engine --model tiny --dataset arith \\
        --task math --train_size 2000 --learning_rate 2e-3 --do_training
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning import config as site
from tuning.flags import Parser, add_flags, given

if TYPE_CHECKING:
    from tuning.runs.rundir import RunDirectory
    from tuning.training.config_training import SFTRunConfig


def parser() -> Parser:
    """The flags: what to train on, what to do, and every setting."""
    from tuning.evaluation.config import PassAtKConfig
    from tuning.training import stage
    from tuning.training.config_training import SFT_PARTS

    made = Parser(prog="run_sft.py", description=__doc__)
    stage.add_data(made)
    made.add_argument("--train_size", required=True, type=int, help="SFT examples")
    stage.add_options(made)
    for part in (*SFT_PARTS, PassAtKConfig):
        add_flags(made, part)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the stage."""
    args = parser().parse_args(argv)
    from tuning.evaluation.config import PassAtKConfig, sampling_config
    from tuning.runs import interrupt
    from tuning.runs.rundir import RunDirectory, locate
    from tuning.training import parents, stage
    from tuning.training.config_training import SFT_PARTS, sft_config

    options = stage.options(args)
    config = sft_config(
        model=args.model, dataset=args.dataset, task=args.task, train_size=args.train_size,
        values=given(args, SFT_PARTS),
    )  # fmt: skip
    sampling = sampling_config(args.model, given(args, (PassAtKConfig,)))
    stage.check_evaluation(args.dataset, args.task, sampling, options)
    parents.require_base(config.model)
    site.require_writable_home()
    interrupt.install()
    directory = RunDirectory(locate(site.models_dir(), config.run_name, config.hash))
    if options.do_training:
        directory = stage.train(
            config.identity(config.run_name, None), functools.partial(_body, config), options,
            joined=config.trainer == "engine",
        )  # fmt: skip
    if (options.do_inference or options.do_evaluation) and stage.first_process():
        stage.require_trained(directory, parents.sft_command(config))
        artifact = stage.Artifact(
            model=config.model, name=directory.name, hash=config.hash, run=directory
        )
        stage.evaluate(artifact, args.dataset, args.task, sampling, options)
    return 0


def _body(config: SFTRunConfig, directory: RunDirectory, report_to: list[str]) -> None:
    if config.trainer == "engine":
        from tuning.training.engine_sft import train
    else:
        from tuning.training.sft_training import train
    train(config, directory, report_to)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
