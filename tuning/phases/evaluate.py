"""The inference and evaluation phases of a stage: a model's answers to a test pool, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from tuning import config as site
from tuning.evaluation.config import EvaluationRunConfig
from tuning.evaluation.generators import GENERATORS
from tuning.evaluation.prompts import require_test_pool
from tuning.phases.options import Options
from tuning.phases.train import use_devices
from tuning.plan import first_share
from tuning.runs import disk, interrupt
from tuning.runs.errors import UserError
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory, claim, locate
from tuning.sweetspots.store import find_sweetspot
from tuning.tasks.registry import task
from tuning.training.config_training import SFTRunConfig
from tuning.weights.artifact import Artifact, artifact_of
from tuning.weights.config import ModelLoadConfig


def artifact_to_evaluate(config: EvaluationRunConfig) -> Artifact:
    """The weights to evaluate; see `artifact_named`."""
    return artifact_named(config.base, config.run, config.run_hash, config.sweetspot)


def artifact_named(
    base: ModelLoadConfig,
    run: str | None = None,
    run_hash: str | None = None,
    sweetspot: str | None = None,
) -> Artifact:
    """The weights of a base, a run, or a sweetspot of a run.

    Raises Skipped if a finished run has no such sweetspot, and UserError if the run is not trained.
    """
    if run is None:
        return artifact_of(base)
    directory = RunDirectory(locate(site.models_dir(), run, run_hash or ""))
    if sweetspot is not None:
        return artifact_of(base, directory, find_sweetspot(directory, sweetspot).path)
    if not directory.done("train"):
        state = directory.status["state"]
        raise UserError(f"run '{run}' is not trained yet; it is {state}.")
    return artifact_of(base, directory)


def check_evaluation(config: EvaluationRunConfig, options: Options) -> None:
    """Raise UserError if answers cannot be sampled here or graded; call it before training."""
    require_test_pool(config.data.entry, config.task, config.sampling.prompts)
    task(config.task).fetch()
    if options.do_inference and (options.force or not is_answered(config)):
        GENERATORS[config.sampling.backend].require(config.sampling.tensor_parallel_size)


def check_pass_at_k(config: SFTRunConfig) -> None:
    """Raise UserError if the pass@k that a training stops at cannot be measured here."""
    if config.pass_at_k.rules:
        task(config.task).fetch()
        GENERATORS[config.pass_at_k.pass_at_k_backend].require()


def is_answered(config: EvaluationRunConfig) -> bool:
    """Whether all answers of an evaluation are there."""
    root = site.outputs_dir(config.task)
    return RunDirectory(locate(root, config.run_name, config.hash)).done("infer")


def evaluate(config: EvaluationRunConfig, artifact: Artifact, options: Options) -> None:
    """Run the requested phases that are not done yet."""
    root = site.outputs_dir(config.task)
    wanted = [("infer", options.do_inference), ("evaluate", options.do_evaluation)]
    first = options.first_prompts
    if first is not None and first < config.sampling.prompts:
        _begin(config, artifact, options, first)
        return
    standing = RunDirectory(locate(root, config.run_name, config.hash))
    if all(standing.done(phase) for phase, asked in wanted if asked) and not options.force:
        logger.info(f"{standing.name}: already evaluated")
        return
    with _claimed(config, options, force=options.force and options.do_inference) as directory:
        if options.do_inference and not directory.done("infer"):
            with (
                directory.phase("infer", last=not options.do_evaluation),
                disk.reporting_full(directory.path, directory.path),
            ):
                _infer(directory, config, artifact)
        if options.do_evaluation:
            _score(directory, config)


def _claimed(
    config: EvaluationRunConfig, options: Options, *, force: bool
) -> AbstractContextManager[RunDirectory]:
    """The directory of an evaluation, for a process that uses the GPUs that sampling takes."""
    use_devices(config.sampling.tensor_parallel_size)
    return claim(
        site.outputs_dir(config.task),
        config.identity(parent=config.evaluates),
        wait=options.wait,
        force=force,
        check=interrupt.check,
    )


def evaluate_run(config: EvaluationRunConfig, directory: RunDirectory, options: Options) -> None:
    """Like `evaluate()`, for a run that was just trained; the name of its directory is final only
    now.
    """
    config = replace(config, artifact=directory.name, run=directory.name)
    evaluate(config, artifact_to_evaluate(config), options)


def _begin(config: EvaluationRunConfig, artifact: Artifact, options: Options, first: int) -> None:
    """Sample and score the first prompts; the evaluation is as far as if it had been stopped there,
    and goes on with the others.
    """
    phase = first_share(first)
    standing = RunDirectory(locate(site.outputs_dir(config.task), config.run_name, config.hash))
    if not options.force and (standing.done(phase) or standing.done("evaluate")):
        logger.info(f"{standing.name}: already evaluated on the first {first} prompts")
        return
    with _claimed(config, options, force=options.force) as directory:
        whole = directory.done("infer")
        with (
            directory.phase(phase, last=False),
            disk.reporting_full(directory.path, directory.path),
        ):
            if not whole:
                _infer(directory, config, artifact, first)
            from tuning.evaluation.scoring import score_first

            scores = score_first(directory, config, first)
        of = config.sampling.prompts
        directory.write_status("pending", f"evaluated on the first {first} of {of} prompts")
    logger.info(f"{directory.name}: pass@1 {_first(scores)} on the first {first} of {of} prompts")


def _infer(
    directory: RunDirectory,
    config: EvaluationRunConfig,
    artifact: Artifact,
    first: int | None = None,
) -> None:
    from tuning.inference.generator import opened
    from tuning.inference.sampling import sample

    with opened(config.sampling.backend, artifact) as generator:
        sample(directory, config, generator, first)


def _score(directory: RunDirectory, config: EvaluationRunConfig) -> None:
    if not directory.done("infer"):
        raise UserError(f"{directory.name} has no responses to evaluate; add --do_inference.")
    with directory.phase("evaluate"):
        from tuning.evaluation.scoring import score

        scores = score(directory, config)
    on = f"{scores['prompts']} prompts x {scores['samples']} samples"
    logger.info(f"{directory.name}: pass@1 {_first(scores)} on {on}")


def _first(scores: Mapping[str, Any]) -> str:
    """pass@1 with its interval."""
    first = scores["pass_at_k"]["1"]
    return f"{first['estimate']:.3f} [{first['low']:.3f}, {first['high']:.3f}]"
