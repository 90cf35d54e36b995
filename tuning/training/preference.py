"""The start of a preference run: its policy and its reference model.

From a parent's adapter: the adapter is trained further over the untouched base, and TRL keeps a
frozen copy as the reference. From a base, or a parent that left whole weights or is merged: a new
adapter, the reference being that adapter switched off. There is never a second base model in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from tuning.runs.rundir import RunDirectory
from tuning.training import trainers
from tuning.training.checkpoints import Resume, RunCallback, resume_point
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed
from tuning.training.start import Start
from tuning.weights import loading
from tuning.weights.artifact import Artifact, artifact_of


@dataclass(kw_only=True)
class Prepared:
    """Everything but the trainer itself."""

    model: Any
    peft_config: Any
    tokenizer: Any
    resume: Resume
    batch: int
    steps: int


def prepare(config: PTRunConfig, directory: RunDirectory, start: Start) -> Prepared:
    """Load the policy."""
    resume = resume_point(directory)
    trainers.seeded(config)
    artifact = artifact_of(config.model, start.parent, start.checkpoint)
    model, new_adapter = _policy(config, artifact)
    return Prepared(
        model=model,
        peft_config=new_adapter,
        tokenizer=loading.open_tokenizer(artifact),
        resume=resume,
        batch=config.batch(start.train_size),
        steps=config.steps(start.train_size),
    )


def _policy(config: PTRunConfig, artifact: Artifact) -> tuple[Any, Any]:
    """(model, config of a new adapter or None where the parent's is trained further)."""
    model = loading.open_model(artifact, trainable=not config.training.merge_parent)
    if not loading.is_adapter(model) or config.training.merge_parent:
        loading.require_modules(model, config.lora)
    if not loading.is_adapter(model):
        return model, loading.peft_config(config.lora)
    if config.training.merge_parent:
        assert isinstance(model, PeftModel)
        return model.merge_and_unload(), loading.peft_config(config.lora)
    return model, None


def run(
    trainer: Any,
    prepared: Prepared,
    config: PTRunConfig,
    directory: RunDirectory,
    start: Start,
    consumed: Consumed,
) -> None:
    """Train to the end; write the adapter, or the merged weights where the parent was merged."""
    callback = RunCallback(directory, prepared.resume, consumed)
    trainer.add_callback(callback)
    trainer.directory, trainer.consumed = directory, consumed
    trainers.run(trainer, callback, prepared.resume)
    merge = config.artifact_form == "full"
    trainers.finish(
        trainer,
        prepared.tokenizer,
        config,
        directory,
        callback,
        start.train_size,
        prepare=lambda model: model.merge_and_unload() if merge else model,
    )
