"""Pre-train a language model with the engine, from scratch or from existing weights.

    python tuning/run_pretrain.py --model tiny
    python tuning/run_pretrain.py --preset gpt-0.25b --use_mock_data --max_steps 50
    python tuning/run_pretrain.py --preset gpt-1b --data_path text.jsonl --tokenizer FOLDER
    python tuning/run_pretrain.py --model_name_or_path FOLDER --data_path documents.jsonl \\
        --block_size 512 --batch_size 16 --max_tokens_per_gpu 8192

Writes TUNING_HOME/models/{run}/, or --output_dir: config.json, status.json, metrics.jsonl,
result.json, and model/, which transformers loads and every later stage takes as a base. Run again,
it resumes, or reports that it is done. Under torchrun several processes share the work:

    torchrun --nproc_per_node 8 tuning/run_pretrain.py --preset gpt-1b --use_mock_data --sep_size 2
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.flags import Parser, add_flags, coerce, given
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    from tuning.engine.run_config import PretrainRunConfig
    from tuning.phases.work import Work


def parser() -> Parser:
    """The flags: the model's shape, the data, the training, and how it is computed."""
    from tuning.autotune.config import add_autotune_flags
    from tuning.engine.run_config import PRETRAIN_PARTS
    from tuning.phases.options import add_claim_flags, add_wandb

    made = Parser(prog="run_pretrain.py", description=__doc__)
    made.add_argument("--model", help="a collections.yaml model to pre-train (tiny)")
    made.add_argument(
        "--exp_name", default="gpt", help="name of the run without --model (default: gpt)"
    )
    made.add_argument("--preset", help="settings by name: see tuning/engine/presets.yaml")
    made.add_argument(
        "--model_name_or_path",
        help="start from existing weights: collections.yaml key, hub id or folder",
    )
    made.add_argument("--output_dir", help="the run directory (default: see above)")
    made.add_argument("--learning_rate", help="alias of --max_lr")
    add_claim_flags(made)
    add_wandb(made)
    add_autotune_flags(made)
    for part in PRETRAIN_PARTS:
        add_flags(made, part)
    return made


def config_of(args: Any) -> PretrainRunConfig:
    """The run that a command line describes."""
    from tuning.engine.config import ComputeConfig
    from tuning.engine.run_config import (
        PRETRAIN_PARTS,
        beside,
        experiment_config,
        preset,
        pretrain_config,
    )

    if args.learning_rate is not None:
        if hasattr(args, "max_lr"):
            raise UserError("--learning_rate and --max_lr are the same setting; give one of them")
        args.max_lr = args.learning_rate
    values = beside(preset(args.preset), given(args, PRETRAIN_PARTS))
    if shared := os.environ.get("SEP_SIZE"):
        values = {"sep_size": coerce(ComputeConfig, "sep_size", shared, "SEP_SIZE: ")} | values
    if args.model_name_or_path:
        values["model_name_or_path"] = args.model_name_or_path
    if args.output_dir:
        values.setdefault("log_dir", str(_output_dir(args) / "logs"))
    if args.model:
        return pretrain_config(args.model, values)
    return experiment_config(args.exp_name, values)


def _output_dir(args: Any) -> Path:
    return site.expanded(args.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    from tuning.engine.run_config import check_place
    from tuning.phases.train import training_phase
    from tuning.phases.tune import tune_only, tuned, tunes_only
    from tuning.phases.work import planned
    from tuning.runs import interrupt

    work = planned(argv, "pretrain") or described(parser().parse_args(argv))
    config = work.run
    check_place(config.compute)
    config.training.own_function()
    site.require_writable_home(config.output.log_dir)
    interrupt.install()
    if processes := tunes_only():
        tune_only("pretrain", config, config.identity(work.name), work.options, processes)
        return 0
    with training_phase(config.identity(work.name), work.options) as training:
        if not training.done:
            from tuning.engine.pretraining import pretrain

            with tuned("pretrain", config, training.directory, work.options) as run:
                pretrain(run, training.directory, list(training.report_to))
    return 0


def described(args: argparse.Namespace) -> Work:
    """The work that a command line describes."""
    from tuning.autotune.config import autotune_given
    from tuning.phases.options import Options, wandb_mode
    from tuning.phases.work import Work

    config = config_of(args)
    options = Options(
        do_training=True,
        wait=not args.no_wait,
        force=args.force,
        wandb=wandb_mode(args.wandb),
        output_dir=_output_dir(args) if args.output_dir else None,
        autotune=autotune_given(args, args.autotune),
    )
    return Work(options=options, run=config, name=config.run_name)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
