"""Preference tuning of an SFT model from a program, with DPO, KTO or GRPO: both runs are described
by config objects, and what preference tuning changed is printed.

    python examples/02_run_dpo.py                     # offline, on the embedded model and dataset
    python examples/02_run_dpo.py --pft-method grpo --sft-train-size 1000 --train-size 500
    python examples/02_run_dpo.py --model-name Qwen/Qwen2.5-0.5B-Instruct --dataset-name gsm8k \\
        --output-dir ./gsm8k-dpo

The SFT run is that of 01_run_sft.py with the same flags, and is trained first if it is not there;
`--sft-train-size 0` starts from the base model. Writes models/ and outputs/ under --output-dir
(default: TUNING_HOME), as `tuning/run_dpo.py` does. Run again, it resumes, or is done at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tuning import run_dpo, run_pretrain, run_sft
from tuning.evaluation.before_after import HeldOutConfig
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.flags import Parser
from tuning.phases.before_after import table
from tuning.phases.options import Options
from tuning.phases.work import Work
from tuning.training.config_training import (
    Parent,
    PTRunConfig,
    model_config,
    preference_config,
    sft_config,
    validation_size,
)
from tuning.training.parents import parent_of
from tuning.weights.base import base_directory


def parser() -> Parser:
    """The flags; settings beyond them are values of the configs below."""
    made = Parser(prog="02_run_dpo.py", description=__doc__)
    made.add_argument(
        "--model_name", default="tiny", help="collections.yaml key, hub id or local folder"
    )
    made.add_argument("--dataset_name", default="arith", help="a dataset of collections.yaml")
    made.add_argument("--task", default="math", help="what the answers are graded by")
    made.add_argument("--pft_method", default="dpo", help="dpo, kto or grpo")
    made.add_argument("--train_size", type=int, default=500, help="preference examples")
    made.add_argument("--sft_train_size", type=int, default=1000, help="SFT examples before them")
    made.add_argument("--output_dir", help="the folder of models/ and outputs/")
    return made


def make_base(args: Any) -> None:
    """1. Pre-train the base model, if it is one of this project and not there yet."""
    model = model_config(args.model_name)
    base = base_directory(model)
    if base is not None and not base.done("train"):
        run_pretrain.main(["--model", model.source.removeprefix("run:")])


def sft_first(args: Any) -> Parent | None:
    """2. The SFT run to start from, trained unless it is; None: the base model."""
    if not args.sft_train_size:
        return None
    run = sft_config(
        model=args.model_name,
        dataset=args.dataset_name,
        task=args.task,
        train_size=args.sft_train_size,
    )
    work = Work(options=Options(do_training=True), run=run, name=run.run_name)
    return parent_of(run, run_sft.carry_out(work).name)


def configured(args: Any, parent: Parent | None) -> PTRunConfig:
    """3. The run. `values` takes every setting of run_dpo.py by its flag; what it leaves out is the
    default of the model and the method.
    """
    return preference_config(
        model=args.model_name,
        dataset=args.dataset_name,
        task=args.task,
        pft_method=args.pft_method,
        train_size=args.train_size,
        parent=parent,
        values={},  # {"beta": 0.3, "learning_rate": 1e-5}
    )


def work_of(args: Any, run: PTRunConfig) -> Work:
    """4. What to do with it: train, answer test prompts, score, and measure before and after."""
    evaluation = evaluation_config(
        run.model,
        dataset=args.dataset_name,
        task=args.task,
        sampling=sampling_config(args.model_name),  # a second argument: {"prompts": 50, ...}
        run=run.run_name,
        run_hash=run.hash,
    )
    options = Options(do_training=True, do_inference=True, do_evaluation=True)
    work = Work(options=options, run=run, name=run.run_name, evaluation=evaluation)
    return work.measured(HeldOutConfig(heldout_pairs=200), validation_size(args.model_name))


def main() -> None:
    """5. Do it, and show what it changed."""
    args = parser().parse_args()
    if args.output_dir:
        os.environ["TUNING_HOME"] = str(Path(args.output_dir).resolve())
    make_base(args)
    run = configured(args, sft_first(args))
    directory = run_dpo.carry_out(work_of(args, run))
    print(f"\n{table(directory)}\n\nthe model is in {directory.path / 'model'}")


if __name__ == "__main__":
    # Turns what is raised into one line and an exit code; call main() to see tracebacks.
    from tuning.entry import run

    run(main)
