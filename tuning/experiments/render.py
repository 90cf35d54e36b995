"""Render a stage as the command that a user would type for it."""

from __future__ import annotations

from tuning.autotune.config import AutotuneConfig, autotune_words
from tuning.evaluation.before_after import BeforeAfterConfig
from tuning.flags import restore
from tuning.phases.options import held_out_words
from tuning.phases.work import evaluation_of, run_of
from tuning.plan import Stage
from tuning.training.render import (
    evaluation_words,
    preference_words,
    pretrain_words,
    sampling_words,
    sft_words,
)

_PHASES = {"train": "--do_training", "infer": "--do_inference", "evaluate": "--do_evaluation"}


def command(stage: Stage) -> list[str]:
    """The entry point, relative to tuning/, followed by its flags."""
    if stage.kind == "pretrain":
        return [*pretrain_words(run_of(stage)), *_tuning(stage)]
    phases = [flag for phase, flag in _PHASES.items() if phase in stage.phases]
    if stage.first_prompts is not None:
        phases += ["--first_prompts", str(stage.first_prompts)]
    if stage.run is None:
        script, *flags = evaluation_words(evaluation_of(stage))
        return [script, *flags, *phases]
    words = sft_words(run_of(stage)) if stage.kind == "sft" else preference_words(run_of(stage))
    words += [*_tuning(stage), *_before_after(stage)]
    evaluates = "infer" in stage.phases or "evaluate" in stage.phases
    if not evaluates:
        return [*words, *phases]
    evaluation = evaluation_of(stage)
    return [*words, *phases, *sampling_words(evaluation.base.model, evaluation.sampling)]


def _before_after(stage: Stage) -> list[str]:
    """The flags of what is measured before and after a training."""
    if stage.before_after is None:
        return []
    return held_out_words(restore(BeforeAfterConfig, stage.before_after).held_out)


def _tuning(stage: Stage) -> list[str]:
    """The flags of the tuning before a training."""
    return autotune_words(restore(AutotuneConfig, stage.autotune or {})) if stage.tunes else []
