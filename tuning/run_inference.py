"""Sample answers of a base model, a run, or a sweetspot of a run, and score them.

    python tuning/run_inference.py --model tiny --dataset arith --task math \\
        --do_inference --do_evaluation
    python tuning/run_inference.py --run RUN --sweetspot ppl-2.0 --dataset arith --task math \\
        --do_inference --do_evaluation

Writes TUNING_HOME/outputs/{task}/{run}/: responses.jsonl, one line a prompt, and scores.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning import config as site
from tuning.flags import Parser, add_flags, given
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    from tuning.training.stage import Artifact


def parser(name: str = "run_inference.py", description: str | None = __doc__) -> Parser:
    """The flags: which model, which test pool, and how to sample."""
    from tuning.evaluation.config import PassAtKConfig
    from tuning.training import stage
    from tuning.training.config_parts import ModelLoadConfig

    made = Parser(prog=name, description=description)
    which = made.add_argument_group("which model: one of --model and --run")
    which.add_argument("--model", help="a base model: collections.yaml key, hub id or local folder")
    which.add_argument("--run", help="a run by the name of its folder under models/")
    which.add_argument("--sweetspot", help="a sweetspot of --run, e.g. ppl-2.0")
    stage.add_data(made, model=False)
    stage.add_options(made, training=False)
    loading = "how --model is loaded"
    add_flags(made, ModelLoadConfig, skip=("max_seq_length",), title=loading)
    add_flags(made, PassAtKConfig)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the stage."""
    return evaluate(parser().parse_args(argv))


def evaluate(args: argparse.Namespace) -> int:
    """The stage behind run_inference.py and run_evaluation.py."""
    from tuning.evaluation.config import PassAtKConfig, sampling_config
    from tuning.runs import interrupt
    from tuning.runs.sweetspot import Skipped
    from tuning.training import stage

    options = stage.options(args)
    if bool(args.model) == bool(args.run) or (args.sweetspot and not args.run):
        raise UserError("give --model, or --run with or without --sweetspot.")
    site.collections().dataset(args.dataset, args.task)
    try:
        artifact = _base(args.model, args) if args.model else _run(args.run, args.sweetspot)
    except Skipped as reason:
        print(f"skipped: {reason}")
        return 0
    sampling = sampling_config(artifact.model.model, given(args, (PassAtKConfig,)))
    stage.check_evaluation(args.dataset, args.task, sampling, options)
    site.require_writable_home()
    interrupt.install()
    stage.evaluate(artifact, args.dataset, args.task, sampling, options)
    return 0


def _base(key: str, args: argparse.Namespace) -> Artifact:
    from tuning.training import parents
    from tuning.training.config_parts import ModelLoadConfig
    from tuning.training.config_training import model_config
    from tuning.training.stage import Artifact

    model = model_config(key, given(args, (ModelLoadConfig,)))
    parents.require_base(model)
    return Artifact(model=model, name=model.label, hash=model.identity_hash)


def _run(name: str, sweetspot: str | None) -> Artifact:
    from tuning.flags import restore
    from tuning.runs.sweetspot import find_sweetspot, sweetspot_hash, sweetspot_name
    from tuning.training import parents
    from tuning.training.config_parts import ModelLoadConfig
    from tuning.training.stage import Artifact

    if sweetspot:
        sft, directory = parents.named_sft(name)
        spot = find_sweetspot(directory, parents.rule_label(sft, sweetspot))
        return Artifact(
            model=sft.model, name=sweetspot_name(directory.name, spot.label),
            hash=sweetspot_hash(sft.hash, spot.label), run=directory, checkpoint=spot.path,
        )  # fmt: skip
    directory, found = parents.named_run(name, ("sft", "pt"))
    if not directory.done("train"):
        raise UserError(f"run '{name}' is not trained yet; it is {directory.status['state']}.")
    model = restore(ModelLoadConfig, found["settings"]["model"])
    return Artifact(model=model, name=name, hash=found["hash"], run=directory)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
