"""Sample answers of a base model, a run, or a sweetspot of a run, and score them.

    python tuning/run_inference.py --model tiny --dataset arith --task math --do_inference
    --do_evaluation python tuning/run_inference.py --run RUN --sweetspot ppl-2.0 --dataset arith
    --task math --do_inference

Writes TUNING_HOME/outputs/{task}/{run}/: responses.jsonl, one line a prompt, and scores.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tuning import config as site
from tuning.flags import Parser, add_flags, given
from tuning.runs.errors import UserError


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
    made.add_argument("--dataset", required=True, help="a dataset of the task")
    made.add_argument("--task", required=True, help="math or instruction (gsm8k, ifeval)")
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
    from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
    from tuning.runs import interrupt
    from tuning.runs.sweetspot import Skipped
    from tuning.training import stage

    options = stage.options(args)
    if bool(args.model) == bool(args.run) or (args.sweetspot and not args.run):
        raise UserError("give --model, or --run with or without --sweetspot.")
    site.collections().dataset(args.dataset, args.task)
    try:
        chosen = _base(args.model, args) if args.model else _run(args.run, args.sweetspot)
    except Skipped as reason:
        print(f"skipped: {reason}")
        return 0
    model, artifact, hash_, load = chosen
    sampling = sampling_config(model, given(args, (PassAtKConfig,)))
    site.require_writable_home()
    interrupt.install()
    stage.evaluate(
        evaluation_config(
            model=model, artifact=artifact, artifact_hash=hash_,
            dataset=args.dataset, task=args.task, sampling=sampling,
        ),
        load,
        options,
    )  # fmt: skip
    return 0


def _base(key: str, args: argparse.Namespace) -> tuple[str, str, str, Any]:
    from tuning.training import parents
    from tuning.training.config_parts import ModelLoadConfig
    from tuning.training.config_training import model_config

    model = model_config(key, given(args, (ModelLoadConfig,)))
    parents.require_base(model)

    def load() -> tuple[Any, Any]:
        from tuning.training import models

        return models.load_base(model), models.load_tokenizer(model)

    return key, model.label, model.identity_hash, load


def _run(name: str, sweetspot: str | None) -> tuple[str, str, str, Any]:
    from tuning.flags import restore
    from tuning.runs.rundir import RunDirectory
    from tuning.runs.sweetspot import find_sweetspot, sweetspot_hash, sweetspot_name
    from tuning.training import parents, stage
    from tuning.training.config_training import ModelLoadConfig

    if sweetspot:
        _, directory = parents.named_sft(name)
        spot = find_sweetspot(directory, sweetspot)
        checkpoint, artifact = spot.path, sweetspot_name(directory.name, sweetspot)
    else:
        directory = RunDirectory(site.models_dir() / name)
        checkpoint, artifact = None, name
        stage.require_trained(directory, "run_sft.py, run_dpo.py or run_pretrain.py")
    found = directory.config
    assert found is not None
    if found["kind"] == "pretrain":
        raise UserError(f"'{name}' is a base model; evaluate it with --model {name}.")
    model = restore(ModelLoadConfig, found["settings"]["model"])
    hash_ = sweetspot_hash(found["hash"], sweetspot) if sweetspot else found["hash"]

    def load() -> tuple[Any, Any]:
        from tuning.training import models

        loaded = models.load_artifact(model, directory, checkpoint)
        return loaded, models.load_tokenizer(model)

    return model.model, artifact, hash_, load


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
