"""Sample answers of a base model, a run, or a sweetspot of a run, and score them.

    python tuning/run_inference.py --model tiny --dataset arith --task math \\
        --do_inference --do_evaluation
    python tuning/run_inference.py --run RUN --sweetspot ppl-2.0 --dataset arith --task math \\
        --do_inference --do_evaluation

Writes TUNING_HOME/outputs/{task}/{run}/: responses.jsonl, one line per prompt, and scores.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.flags import Parser, add_flags, given
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    from tuning.evaluation.config import EvaluationRunConfig
    from tuning.phases.work import Work
    from tuning.weights.config import ModelLoadConfig


def parser(name: str = "run_inference.py", description: str | None = __doc__) -> Parser:
    """The flags: which model, which test pool, and how to sample."""
    from tuning.evaluation.config import PassAtKConfig
    from tuning.phases.options import add_data, add_options
    from tuning.weights.config import ModelLoadConfig

    made = Parser(prog=name, description=description)
    add_which(made)
    add_data(made, model=False)
    add_options(made, training=False)
    loading = "how --model is loaded"
    add_flags(made, ModelLoadConfig, skip=("max_seq_length", "backend_train"), title=loading)
    add_flags(made, PassAtKConfig)
    return made


def add_which(parser: Parser) -> None:
    """The flags that name a model: see `named_model`."""
    which = parser.add_argument_group("which model: one of --model and --run")
    which.add_argument("--model", help="a base model: collections.yaml key, hub id or local folder")
    which.add_argument("--run", help="a run by the name of its folder under models/")
    which.add_argument("--sweetspot", help="a sweetspot of --run, e.g. ppl-2.0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    from tuning.phases.work import planned

    work = planned(argv, "evaluation") or described(parser().parse_args(argv))
    return evaluate(work)


def preset(
    name: str, description: str | None, words: Sequence[str], argv: Sequence[str] | None
) -> int:
    """A script that is this one with `words` before those of its command line."""
    own = sys.argv[1:] if argv is None else argv
    return evaluate(described(parser(name, description).parse_args([*words, *own])))


def evaluate(work: Work) -> int:
    """Run the stage of run_inference.py or run_evaluation.py; returns the exit code."""
    from tuning.phases.evaluate import artifact_to_evaluate, check_evaluation
    from tuning.phases.evaluate import evaluate as do_phases
    from tuning.runs import interrupt
    from tuning.weights.base import require_base

    assert work.evaluation is not None
    require_base(work.evaluation.base)
    artifact = artifact_to_evaluate(work.evaluation)
    check_evaluation(work.evaluation, work.options)
    site.require_writable_home()
    interrupt.install()
    do_phases(work.evaluation, artifact, work.options)
    return 0


def described(args: argparse.Namespace) -> Work:
    """The work that a command line describes; what is only scored was sampled by any backend."""
    from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
    from tuning.evaluation.generators import GENERATORS
    from tuning.phases.evaluate import is_answered
    from tuning.phases.options import options_of
    from tuning.phases.work import Work

    options = options_of(args)
    base, which = named_model(args)
    site.collections().dataset(args.dataset, args.task)

    def config(values: dict[str, Any]) -> EvaluationRunConfig:
        sampling = sampling_config(base.model, values)
        return evaluation_config(
            base, dataset=args.dataset, task=args.task, sampling=sampling, **which
        )

    values = given(args, (PassAtKConfig,))
    evaluation = config(values)
    if not options.do_inference and "backend" not in values:
        others = (config(values | {"backend": name}) for name in GENERATORS)
        evaluation = next((one for one in (evaluation, *others) if is_answered(one)), evaluation)
    return Work(options=options, evaluation=evaluation)


def named_model(args: argparse.Namespace) -> tuple[ModelLoadConfig, dict[str, Any]]:
    """The base that --model or --run stands on, and which run and sweetspot are meant."""
    from tuning.flags import restore
    from tuning.sweetspots.rules import named
    from tuning.training import parents
    from tuning.training.config_training import model_config
    from tuning.weights.config import ModelLoadConfig

    if bool(args.model) == bool(args.run) or (args.sweetspot and not args.run):
        raise UserError("give --model, or --run with or without --sweetspot.")
    if args.model:
        return model_config(args.model, given(args, (ModelLoadConfig,))), {}
    if args.sweetspot:
        sft, directory = parents.named_sft(args.run)
        label = named(args.sweetspot, sft.rules, sft.run_name).label
        return sft.model, {"run": directory.name, "run_hash": sft.hash, "sweetspot": label}
    directory, found = parents.named_run(args.run, ("sft", "pt"))
    base = restore(ModelLoadConfig, found["settings"]["model"])
    return base, {"run": directory.name, "run_hash": found["hash"]}


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
