"""A pre-training run: the model, the text and the optimizer, and what the run is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuning import config as site
from tuning.engine.config import ModelConfig, PretrainConfig
from tuning.flags import build, override, plain
from tuning.runs.errors import UserError
from tuning.runs.identity import digest, settings
from tuning.runs.rundir import SHORT, Identity

PRETRAIN_PARTS: tuple[type, ...] = (ModelConfig, PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class PretrainRunConfig:
    """One pre-training run from scratch, tokenizer and chat template included."""

    kind = "pretrain"
    model: str = field(metadata={"hashed": False})
    """The model of collections.yaml that this run makes; the run's name."""
    chat_template: str
    """A file of tuning/data/chat_templates without its ending."""
    corpus_version: str
    """Changes when the text does."""
    shape: ModelConfig
    training: PretrainConfig

    @property
    def hash(self) -> str:
        """Over everything that changes the weights."""
        return digest({"kind": self.kind, "settings": settings(self)})

    @property
    def run_name(self) -> str:
        """`{model}`, with `-{hash8}` behind unless all settings are the model's defaults."""
        default = pretrain_config(self.model)
        same = settings(self) == settings(default)
        return self.model if same else f"{self.model}-{self.hash[:SHORT]}"

    def identity(self) -> Identity:
        """The identity under which the run's directory is claimed."""
        return Identity(
            run_name=self.run_name,
            kind=self.kind,
            hash=self.hash,
            hashed=settings(self),
            settings=plain(self),
            artifact="full",
        )


def pretrain_config(model: str, values: Mapping[str, Any] | None = None) -> PretrainRunConfig:
    """The pre-training of a model: defaults, then collections.yaml, then `values` (flat names)."""
    from tuning.data.train_dataset import version

    entry = site.collections().model(model)
    if entry.from_run != model:
        raise UserError(
            f"model '{model}' is not pre-trained here; a model is where collections.yaml says "
            f"'from_run: {model}' under its name."
        )
    where = f"collections.yaml, models: {model}: settings: pretrain"
    chosen = override(PRETRAIN_PARTS, entry.settings.get("pretrain", {}), where)
    chosen |= dict(values or {})
    training = build(PretrainConfig, chosen)
    shape = build(ModelConfig, chosen)
    if shape.vocab_size < training.tokenizer_vocab_size:
        raise UserError(
            f"vocab_size {shape.vocab_size} is below tokenizer_vocab_size "
            f"{training.tokenizer_vocab_size}; every token needs a row of the embedding."
        )
    return PretrainRunConfig(
        model=model,
        chat_template=entry.chat_template or "chatml",
        corpus_version=version(training.corpus, "sft"),
        shape=shape,
        training=training,
    )
