"""What collections.yaml says of a base model: its settings, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.engine.run_config import pretrain_hash
from tuning.flags import build
from tuning.schema import override
from tuning.weights.config import ModelLoadConfig
from tuning.weights.files import checked_hash


def settings_of_model(model: str, stages: Sequence[str], parts: Sequence[type]) -> dict[str, Any]:
    """The settings of a model for stages, later ones before earlier ones; `parts` have them."""
    entry = site.collections().model(model)
    chosen: dict[str, Any] = {}
    if entry.target_modules:
        chosen["target_modules"] = entry.target_modules
    if entry.full_modules:
        chosen["full_modules"] = entry.full_modules
    if entry.chat_template:
        chosen["chat_template"] = entry.chat_template
    for stage in stages:
        where = f"collections.yaml: models: {entry.name}: settings: {stage}"
        chosen |= override(parts, entry.settings.get(stage, {}), where)
    return chosen


def load_config(name: str, chosen: Mapping[str, Any]) -> ModelLoadConfig:
    """How a model is loaded, with the settings chosen for it."""
    entry = site.collections().model(name)
    template = chosen.get("chat_template")
    if template:
        site.chat_template(template)
    key = name if name in site.collections().models else entry.path or name
    return build(
        ModelLoadConfig,
        chosen,
        model=key,
        source=entry.source,
        path=entry.path,
        base_hash=_base_hash(entry),
    )


def _base_hash(entry: site.ModelEntry) -> str | None:
    """The hash of the run that makes a base model, or of the files of a local one."""
    if entry.from_run:
        return pretrain_hash(entry.from_run)
    return checked_hash(Path(entry.path)) if entry.path else None
