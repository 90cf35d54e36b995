"""Supervised fine-tuning from a program: the run is described by config objects and carried out as
`tuning/run_sft.py` does it, and what it changed is printed.

    python examples/01_run_sft.py                     # offline, on the embedded model and dataset
    python examples/01_run_sft.py --model-name Qwen/Qwen2.5-0.5B-Instruct --dataset-name gsm8k \\
        --output-dir ./gsm8k-sft

Writes models/ and outputs/ under --output-dir (default: TUNING_HOME): the same directories as the
command line, since a run is known by its settings. Run again, it resumes, or is done at once. The
embedded model is pre-trained first, which takes two to four minutes, once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tuning import run_pretrain, run_sft
from tuning.evaluation.before_after import HeldOutConfig
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.flags import Parser
from tuning.phases.before_after import table
from tuning.phases.options import Options
from tuning.phases.work import Work
from tuning.training.config_training import SFTRunConfig, sft_config
from tuning.weights.base import base_directory


def parser() -> Parser:
    """The flags; settings beyond them are values of the config below."""
    made = Parser(prog="01_run_sft.py", description=__doc__)
    made.add_argument(
        "--model_name", default="tiny", help="collections.yaml key, hub id or local folder"
    )
    made.add_argument("--dataset_name", default="arith", help="a dataset of collections.yaml")
    made.add_argument("--task", default="math", help="what the answers are graded by")
    made.add_argument("--train_size", type=int, default=1000, help="SFT examples")
    made.add_argument("--output_dir", help="the folder of models/ and outputs/")
    return made


def configured(args: Any) -> SFTRunConfig:
    """1. The run. `values` takes every setting of run_sft.py by its flag; what it leaves out is the
    model's default, so `{}` is the run that run_sft.py makes of these flags alone.
    """
    return sft_config(
        model=args.model_name,
        dataset=args.dataset_name,
        task=args.task,
        train_size=args.train_size,
        values={},  # {"learning_rate": 1e-4, "lora_r": 64, "trainer": "engine"}
    )


def work_of(args: Any) -> Work:
    """2. What to do with it: train, answer test prompts, score, and measure before and after."""
    run = configured(args)
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
    return work.measured(HeldOutConfig(), run.perplexity.validation_size)


def make_base(run: SFTRunConfig) -> None:
    """3. Pre-train the base model, if it is one of this project and not there yet."""
    base = base_directory(run.model)
    if base is not None and not base.done("train"):
        run_pretrain.main(["--model", run.model.source.removeprefix("run:")])


def main() -> None:
    """4. Do it, and show what it changed."""
    args = parser().parse_args()
    if args.output_dir:
        os.environ["TUNING_HOME"] = str(Path(args.output_dir).resolve())
    work = work_of(args)
    make_base(work.run)
    directory = run_sft.carry_out(work)
    print(f"\n{table(directory)}\n\nthe model is in {directory.path / 'model'}")


if __name__ == "__main__":
    # Turns what is raised into one line and an exit code; call main() to see tracebacks.
    from tuning.entry import run

    run(main)
