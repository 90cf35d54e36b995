"""The start of a preference run: its policy and its reference model.

From a parent's adapter: the adapter is trained further over the untouched base, and TRL keeps a
frozen copy as the reference. From a base, or a parent that left whole weights or is merged: a new
adapter, the reference being that adapter switched off. Where all weights are trained, the reference
is a frozen copy of them, and only there is a second model in memory.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from peft import get_peft_model

from tuning.runs.rundir import RunDirectory
from tuning.training import trainers
from tuning.training.backend import open_policy
from tuning.training.checkpoints import Resume, RunCallback, resume_point
from tuning.training.config_training import PTRunConfig
from tuning.training.consumed import Consumed
from tuning.training.start import Start
from tuning.weights import loading
from tuning.weights.artifact import artifact_of


@dataclass(kw_only=True)
class Prepared:
    """Everything but the trainer itself."""

    model: Any
    peft_config: Any
    """Of a new adapter; None where the parent's is trained further, or all weights are."""
    tokenizer: Any
    resume: Resume
    batch: int
    steps: int

    def reference(self, config: PTRunConfig) -> Any:
        """A frozen copy of the policy before its first step, where all weights are trained; None
        where TRL finds the reference in the policy, its adapter apart.
        """
        return copy.deepcopy(self.model).requires_grad_(False) if config.lora.full else None


def prepare(config: PTRunConfig, directory: RunDirectory, start: Start) -> Prepared:
    """Load the policy."""
    resume = resume_point(directory)
    trainers.seeded(config)
    artifact = artifact_of(config.model, start.parent, start.checkpoint)
    model, new_adapter = open_policy(config, artifact, continues=config.continues_adapter)
    return Prepared(
        model=model,
        peft_config=new_adapter,
        tokenizer=loading.open_tokenizer(artifact),
        resume=resume,
        batch=config.batch(start.train_size),
        steps=config.steps(start.train_size),
    )


def run(
    trainer: Any,
    prepared: Prepared,
    config: PTRunConfig,
    directory: RunDirectory,
    start: Start,
    consumed: Consumed,
) -> None:
    """Train to the end; write the adapter, or whole weights where the parent was merged or all of
    them were trained.
    """
    callback = RunCallback(directory, prepared.resume, consumed)
    trainer.add_callback(callback)
    trainer.directory, trainer.consumed = directory, consumed
    trainers.run(trainer, callback, prepared.resume)
    trainers.finish(
        trainer,
        prepared.tokenizer,
        config,
        directory,
        callback,
        start.train_size,
        prepare=lambda model, state: _artifact(model, state, prepared, config, start),
    )


def _artifact(
    model: Any, state: dict[str, Any] | None, prepared: Prepared, config: PTRunConfig, start: Start
) -> tuple[Any, Any]:
    """What the run leaves: the model, merged where it leaves whole weights, and the whole state of
    one that is sharded. Shards are not merged: the model is opened once more, on the CPU.
    """
    if config.artifact_form != "full" or config.lora.full:
        return model, state
    if state is not None:
        artifact = artifact_of(config.model, start.parent, start.checkpoint)
        policy, _ = open_policy(config, artifact, device="cpu")
        model = get_peft_model(policy, prepared.peft_config)
        assert not model.load_state_dict(state, strict=False).unexpected_keys
    return model.merge_and_unload(), None
