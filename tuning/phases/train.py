"""The training phase of a stage: claim the run directory, train in it, mark it done."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache

from tuning import config as site
from tuning.engine.together import on_all_ranks
from tuning.phases.options import Options
from tuning.runs import interrupt, provenance, ranks
from tuning.runs.errors import UserError
from tuning.runs.log import logger
from tuning.runs.names import require_fits
from tuning.runs.rundir import Identity, RunDirectory, claim, locate, take
from tuning.runs.training import Training, training_in


@contextlib.contextmanager
def training_phase(identity: Identity, options: Options) -> Iterator[Training]:
    """Run the block as the training phase of a run; it must not train if `done`. Under torchrun
    all ranks enter it.
    """
    require_fits("run", identity.run_name)
    with on_all_ranks(_held(identity, options)) as training:
        yield replace(training, report_to=_report_to(training, identity, options))
    if ranks.world_size() > 1:
        from tuning.engine.ranks import leave

        leave()


def _held(identity: Identity, options: Options) -> AbstractContextManager[Training]:
    """The run directory, to be claimed for training; not claimed if it is trained already."""
    named, root = options.output_dir, site.models_dir()
    if named is not None:
        identity, root = replace(identity, run_name=named.name), named.parent
        take(named, identity, force=options.force)
    standing = RunDirectory(named or locate(root, identity.run_name, identity.hash))
    if standing.done("train") and not options.force:
        logger.info(f"{standing.name}: already trained")
        return contextlib.nullcontext(Training(directory=standing, done=True))
    if options.do_evaluation and not options.do_inference:
        raise UserError("--do_evaluation needs answers of the trained model; add --do_inference.")
    use_devices()
    return training_in(
        claim(
            root,
            identity,
            exact=named is not None,
            wait=options.wait,
            force=options.force,
            check=interrupt.check,
        )
    )


def _report_to(training: Training, identity: Identity, options: Options) -> tuple[str, ...]:
    """Where rank 0 reports a training that starts now; with `force`, drops stale evaluations."""
    if training.done or not ranks.is_first():
        return ()
    from tuning.runs import wandb_run

    if options.force and options.output_dir is None:
        drop_evaluations(training.directory)
    path = training.directory.path
    return tuple(wandb_run.report_to(options.wandb, path, identity.hash))


@cache
def _devices() -> list[str]:
    """The GPUs that this process was given."""
    return provenance.gpus()


def use_devices(count: int = 1) -> None:
    """Hide all GPUs but `count` from a single process; the Trainer would use them all."""
    if len(_devices()) > 1 and not ranks.under_torchrun():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_devices()[:count])


def drop_evaluations(directory: RunDirectory) -> None:
    """Delete the evaluations of a run that is retrained: they are stale.

    Runs that started from its old weights are kept, each with a warning.
    """
    for path in directory.path.parent.parent.glob("outputs/*/*/config.json"):
        evaluation = RunDirectory(path.parent)
        parent = (evaluation.config or {}).get("parent") or {}
        name = parent.get("run_name", "")
        if not evaluation.is_current:
            continue
        if name == directory.name or name.startswith(f"{directory.name}_sweetspot-"):
            shutil.rmtree(path.parent)
            logger.info(f"{path.parent.name}: its evaluation is stale and was removed")
    for path in directory.path.parent.glob("*/config.json"):
        parent = (RunDirectory(path.parent).config or {}).get("parent") or {}
        if parent.get("run_name") == directory.name:
            logger.warning(
                f"{path.parent.name} was trained from the old weights; retrain it with --force"
            )


def not_trained(directory: RunDirectory, command: str) -> UserError:
    """The error for a run that is not trained, with the command that trains it."""
    return UserError(f"run '{directory.name}' is not trained yet; make it with: {command}")
