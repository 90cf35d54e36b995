"""A stage: one run and a set of its phases, in one process. What is done is skipped; what is not,
is claimed and done.

Nothing heavy is imported before something heavy has to be done, so that a finished stage answers at
once.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.evaluation.config import EvaluationRunConfig, PassAtKConfig, evaluation_config
from tuning.flags import Parser
from tuning.runs import disk, interrupt, provenance
from tuning.runs.errors import UserError, choose
from tuning.runs.rundir import Identity, RunDirectory, claim, locate, take, tell
from tuning.runs.training import train_in
from tuning.training.config_parts import ModelLoadConfig

WANDB_MODES = ("off", "offline", "online")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which phases a stage does, and how."""

    do_training: bool = False
    do_inference: bool = False
    do_evaluation: bool = False
    wait: bool = True
    force: bool = False
    wandb: str = "off"
    output_dir: Path | None = None
    """The run's own directory, in place of the one that its name has under TUNING_HOME/models."""


def add_data(parser: Parser, *, model: bool = True) -> None:
    """The flags that say which model, on what."""
    if model:
        parser.add_argument(
            "--model", required=True, help="collections.yaml key, hub id or local folder"
        )
    parser.add_argument("--dataset", required=True, help="a dataset of the task")
    parser.add_argument("--task", required=True, help="math or instruction (gsm8k, ifeval)")


def wandb_mode(value: str) -> str:
    """One of WANDB_MODES, or a UserError."""
    return choose("--wandb mode", value, WANDB_MODES)


def add_options(parser: Parser, *, training: bool = True) -> None:
    """The flags of every stage."""
    group = parser.add_argument_group("what to do")
    if training:
        group.add_argument("--do_training", action="store_true", help="train, or continue training")
    group.add_argument(
        "--do_inference", action="store_true", help="sample answers to the test prompts"
    )
    group.add_argument("--do_evaluation", action="store_true", help="check the answers and score")
    group.add_argument("--force", action="store_true", help="do it anew where it is done already")
    group.add_argument(
        "--no_wait", action="store_true", help="fail if another process has the run, do not wait"
    )
    if training:
        group.add_argument(
            "--wandb", default="off", metavar="|".join(WANDB_MODES),
            help="report training to Weights & Biases (default: off)",
        )  # fmt: skip


def options(args: argparse.Namespace) -> Options:
    """The options of a command line; UserError where nothing is asked for."""
    chosen = Options(
        do_training=getattr(args, "do_training", False),
        do_inference=args.do_inference,
        do_evaluation=args.do_evaluation,
        wait=not args.no_wait,
        force=args.force,
        wandb=wandb_mode(getattr(args, "wandb", "off")),
    )
    if not (chosen.do_training or chosen.do_inference or chosen.do_evaluation):
        flags = "--do_training, --do_inference and --do_evaluation"
        raise UserError(f"nothing to do: give one or more of {flags}.")
    return chosen


def train(
    identity: Identity,
    body: Callable[[RunDirectory, list[str]], None],
    options: Options,
    *,
    joined: bool = False,
) -> RunDirectory:
    """The training phase of a run in its directory; `body(directory, report_to)` does the work.

    `joined`: the body can be run by several processes at once, which torchrun starts.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not joined:
            raise UserError(
                f"{identity.kind} runs are trained by one process; torchrun started "
                f"{os.environ['WORLD_SIZE']}. Set nodes and processes to 1 in slurm/cluster.yaml."
            )
        from tuning.engine import ranks
        from tuning.engine.together import together

        directory = together(lambda begin: _train(identity, begin, options), body)
        ranks.leave()
        return directory
    return _train(identity, body, options)


def first_process() -> bool:
    """Whether this process is alone, or the first of those that torchrun started: what several
    trained together, one evaluates.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return alone or os.environ.get("RANK", "0") == "0"


def _train(
    identity: Identity, body: Callable[[RunDirectory, list[str]], None], options: Options
) -> RunDirectory:
    named, root = options.output_dir, site.models_dir()
    if named is not None:
        identity, root = replace(identity, run_name=named.name), named.parent
        take(named, identity, force=options.force)
    standing = RunDirectory(named or locate(root, identity.run_name, identity.hash))
    if standing.done("train") and not options.force:
        print(f"{standing.name}: already trained")
        return standing
    if options.do_evaluation and not options.do_inference:
        raise UserError("--do_evaluation needs answers of what is trained; add --do_inference.")
    _one_device()

    def reported(directory: RunDirectory) -> None:
        from tuning.training import wandb_run

        if options.force and named is None:
            _drop_evaluations(directory)
        body(directory, wandb_run.report_to(options.wandb, directory.path, identity.hash))

    claimed = claim(
        root, identity, exact=named is not None, wait=options.wait, force=options.force,
        check=interrupt.check, say=_say,
    )  # fmt: skip
    return train_in(claimed, reported)


def _one_device() -> None:
    """One process trains on one GPU: with more in sight the Trainer would multiply the batch."""
    devices = provenance.gpus()
    if len(devices) > 1 and "LOCAL_RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[0]


def _drop_evaluations(directory: RunDirectory) -> None:
    """What was sampled from the weights that a run had before is not of those that it will have.

    Forks are other runs, with weights of their own; they are named, and left.
    """
    for path in directory.path.parent.parent.glob("outputs/*/*/config.json"):
        parent = (RunDirectory(path.parent).config or {}).get("parent") or {}
        name = parent.get("run_name", "")
        if name == directory.name or name.startswith(f"{directory.name}_sweetspot-"):
            shutil.rmtree(path.parent)
            print(f"{path.parent.name}: its evaluation was of the old weights and is removed")
    for path in directory.path.parent.glob("*/config.json"):
        parent = (RunDirectory(path.parent).config or {}).get("parent") or {}
        if parent.get("run_name") == directory.name:
            print(f"warning: {path.parent.name} was made from the old weights; use --force on it")


def _say(text: str) -> None:
    print(text, flush=True)
    tell(phase="waiting", at=0, of=0, note=text, time=0.0, directory="")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Weights that can be evaluated: of a base (no run), a run, or a checkpoint of one."""

    model: ModelLoadConfig
    name: str
    hash: str
    run: RunDirectory | None = None
    checkpoint: Path | None = None

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        from tuning.training import models

        loaded = models.load_artifact(self.model, self.run, self.checkpoint)
        return loaded, models.load_tokenizer(self.model)


def check_evaluation(dataset: str, task: str, sampling: PassAtKConfig, options: Options) -> None:
    """Raise UserError for an evaluation that cannot be, before anything is trained for it."""
    from tuning.data import train_dataset
    from tuning.tasks import base

    if not (options.do_inference or options.do_evaluation):
        return
    train_dataset.require(dataset, "test", sampling.prompts, "prompts")
    accepts = base.task(site.collections().task(task)).accepts
    for number, row in enumerate(train_dataset.rows(dataset, "test", sampling.prompts), 1):
        if not accepts(row["answer"]):
            raise UserError(
                f"test row {number} of '{dataset}': the answer '{row['answer']}' is none that "
                f"task '{task}' can check."
            )


def evaluate(
    artifact: Artifact, dataset: str, task: str, sampling: PassAtKConfig, options: Options
) -> None:
    """The inference and evaluation phases of an artifact on the test pool of a dataset."""
    config = evaluation_config(
        model=artifact.model.model, artifact=artifact.name, artifact_hash=artifact.hash,
        dataset=dataset, task=task, sampling=sampling,
    )  # fmt: skip
    root = site.outputs_dir(config.task)
    wanted = [("infer", options.do_inference), ("evaluate", options.do_evaluation)]
    standing = RunDirectory(locate(root, config.run_name, config.hash))
    if all(standing.done(phase) for phase, asked in wanted if asked) and not options.force:
        print(f"{standing.name}: already evaluated")
        return
    _one_device()
    with claim(
        root, config.identity(), wait=options.wait, force=options.force and options.do_inference,
        check=interrupt.check, say=_say,
    ) as directory:  # fmt: skip
        if options.do_inference and not directory.done("infer"):
            last = not options.do_evaluation
            with (
                directory.phase("infer", last=last),
                disk.reporting_full(directory.path, directory.path),
            ):
                _infer(directory, config, artifact)
        if options.do_evaluation:
            _score(directory, config)


def _infer(directory: RunDirectory, config: EvaluationRunConfig, artifact: Artifact) -> None:
    from tuning.inference.hf_engine import HFGenerator
    from tuning.inference.sampling import sample

    sample(directory, config, HFGenerator(*artifact.load()))


def _score(directory: RunDirectory, config: EvaluationRunConfig) -> None:
    if not directory.done("infer"):
        raise UserError(f"{directory.name} has no responses to evaluate; add --do_inference.")
    with directory.phase("evaluate"):
        from tuning.evaluation.scoring import score

        scores = score(directory, config)
    first = scores["pass_at_k"]["1"]
    interval = f"{first['estimate']:.3f} [{first['low']:.3f}, {first['high']:.3f}]"
    on = f"{scores['prompts']} prompts x {scores['samples']} samples"
    print(f"{directory.name}: pass@1 {interval} on {on}")


def require_trained(directory: RunDirectory, command: str) -> None:
    """Raise UserError with the command that trains a run unless it is trained."""
    if not directory.done("train"):
        raise UserError(f"run '{directory.name}' is not trained yet; make it with: {command}")
