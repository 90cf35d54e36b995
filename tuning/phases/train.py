"""The training phase of a stage: its run's directory is claimed, trained in, and marked done."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from tuning import config as site
from tuning.engine.together import on_all_ranks
from tuning.phases.options import Options
from tuning.runs import interrupt, provenance, ranks
from tuning.runs.errors import UserError
from tuning.runs.log import logger
from tuning.runs.rundir import Identity, RunDirectory, claim, locate, take
from tuning.runs.training import Training, training_in


@contextlib.contextmanager
def training_phase(
    identity: Identity, options: Options, *, joinable: bool = False
) -> Iterator[Training]:
    """Train within this block, unless `done`. Under torchrun all ranks enter it.

    `joinable`: several processes can train this run together.
    """
    if ranks.world_size() > 1 and not joinable:
        raise UserError(
            f"{identity.kind} runs are trained by one process; torchrun started "
            f"{ranks.world_size()}. Set nodes and processes to 1 in slurm/cluster.yaml."
        )
    with on_all_ranks(_held(identity, options)) as training:
        yield replace(training, report_to=_report_to(training, identity, options))
    if ranks.world_size() > 1:
        from tuning.engine.ranks import leave

        leave()


def _held(identity: Identity, options: Options) -> AbstractContextManager[Training]:
    """The run's directory, held for training by this process."""
    named, root = options.output_dir, site.models_dir()
    if named is not None:
        identity, root = replace(identity, run_name=named.name), named.parent
        take(named, identity, force=options.force)
    standing = RunDirectory(named or locate(root, identity.run_name, identity.hash))
    if standing.done("train") and not options.force:
        logger.info(f"{standing.name}: already trained")
        return contextlib.nullcontext(Training(directory=standing, done=True))
    if options.do_evaluation and not options.do_inference:
        raise UserError("--do_evaluation needs answers of what is trained; add --do_inference.")
    use_one_device()
    return training_in(
        claim(
            root, identity, exact=named is not None, wait=options.wait, force=options.force,
            check=interrupt.check,
        )
    )  # fmt: skip


def _report_to(training: Training, identity: Identity, options: Options) -> tuple[str, ...]:
    """Prepare a training that begins; what it is reported to."""
    if training.done or not ranks.is_first():
        return ()
    from tuning.training import wandb_run

    if options.force and options.output_dir is None:
        _drop_evaluations(training.directory)
    path = training.directory.path
    return tuple(wandb_run.report_to(options.wandb, path, identity.hash))


def use_one_device() -> None:
    """One process trains on one GPU: if it saw more, the Trainer would multiply the batch."""
    devices = provenance.gpus()
    if len(devices) > 1 and not ranks.under_torchrun():
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[0]


def _drop_evaluations(directory: RunDirectory) -> None:
    """Delete the evaluations of a run that is retrained: they are stale.

    Its forks are runs of their own, with their own weights; they are named, and left.
    """
    for path in directory.path.parent.parent.glob("outputs/*/*/config.json"):
        parent = (RunDirectory(path.parent).config or {}).get("parent") or {}
        name = parent.get("run_name", "")
        if name == directory.name or name.startswith(f"{directory.name}_sweetspot-"):
            shutil.rmtree(path.parent)
            logger.info(f"{path.parent.name}: its evaluation is stale and was removed")
    for path in directory.path.parent.glob("*/config.json"):
        parent = (RunDirectory(path.parent).config or {}).get("parent") or {}
        if parent.get("run_name") == directory.name:
            logger.warning(f"{path.parent.name} was made from the old weights; use --force on it")


def not_trained(directory: RunDirectory, command: str) -> UserError:
    """The error for a run that is not trained, with the command that trains it."""
    return UserError(f"run '{directory.name}' is not trained yet; make it with: {command}")
