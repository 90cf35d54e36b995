"""Where things lie (TUNING_HOME) and what can be chosen (collections.yaml), read once and
validated.

Nothing here imports more than PyYAML: every `--help`, dry run and status passes through it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuning.runs.errors import UserError, choose

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
CHAT_TEMPLATES = PACKAGE / "data" / "chat_templates"


def home() -> Path:
    """The root of models, outputs, datasets and caches: TUNING_HOME, or tuning/ in the checkout."""
    return Path(os.environ.get("TUNING_HOME") or PACKAGE).expanduser().resolve()


def models_dir() -> Path:
    """One folder a training run."""
    return home() / "models"


def outputs_dir(task: str) -> Path:
    """One folder an evaluated model: responses.jsonl and scores.json."""
    return home() / "outputs" / task


def reports_dir() -> Path:
    """One folder an experiment: plan.json, results.csv and report.html."""
    return home() / "outputs" / "reports"


def require_writable_home() -> None:
    """Raise UserError unless files can be made under TUNING_HOME."""
    root = home()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"TUNING_HOME '{root}' cannot be written ({error.strerror}); "
            "point TUNING_HOME at a folder of yours."
        ) from None


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model as collections.yaml describes it."""

    name: str
    hub: str | None = None
    from_run: str | None = None
    path: str | None = None
    chat_template: str | None = None
    target_modules: tuple[str, ...] | None = None
    full_modules: tuple[str, ...] = ()
    perplexity_thresholds: tuple[float, ...] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """What identifies the weights: a hub id, `run:NAME` or a local path."""
        return self.hub or (f"run:{self.from_run}" if self.from_run else str(self.path))


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A dataset as collections.yaml describes it; `files` maps a pool to a JSONL file or hub id."""

    name: str
    loader: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Collections:
    """The content of collections.yaml."""

    path: Path
    tasks: dict[str, tuple[str, ...]]
    aliases: dict[str, str]
    datasets: dict[str, DatasetEntry]
    models: dict[str, ModelEntry]
    sft_ratio: tuple[float, ...]
    pft_methods: tuple[str, ...]
    perplexity_thresholds: tuple[float, ...]

    def task(self, name: str) -> str:
        """The canonical name of a task; `gsm8k` and `ifeval` are aliases."""
        canonical = self.aliases.get(name, name)
        return canonical if canonical in self.tasks else choose("task", name, self.tasks)

    def dataset(self, name: str, task: str | None = None) -> DatasetEntry:
        """A dataset, which must belong to `task` where one is given."""
        choose("dataset", name, self.datasets, f"Datasets are listed in {self.path.name}.")
        if task is not None and name not in self.tasks[self.task(task)]:
            raise UserError(
                f"task '{task}' has no dataset '{name}'; its datasets are: "
                f"{', '.join(self.tasks[self.task(task)])}."
            )
        return self.datasets[name]

    def method(self, name: str) -> str:
        """A preference method."""
        return choose("preference method", name, self.pft_methods)

    def model(self, name: str) -> ModelEntry:
        """A model by key, hub id (`org/name`) or local folder."""
        if name in self.models:
            return self.models[name]
        if Path(name).expanduser().is_dir():
            path = Path(name).expanduser().resolve()
            return ModelEntry(name=path.name, path=str(path))
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return ModelEntry(name=name.replace("/", "--"), hub=name)
        choose("model", name, self.models, "A hub id (org/name) or a local folder works too.")
        raise AssertionError("choose() raises for what is not listed")

    def thresholds(self, model: ModelEntry) -> tuple[float, ...]:
        """The perplexity thresholds of a sweetspot experiment that names none."""
        return model.perplexity_thresholds or self.perplexity_thresholds


def collections_path() -> Path:
    """collections.yaml of the checkout, or what TUNING_COLLECTIONS names."""
    return Path(os.environ.get("TUNING_COLLECTIONS") or CHECKOUT / "collections.yaml").resolve()


def collections() -> Collections:
    """The validated collections.yaml; parsed once for each file that is asked for."""
    return _load(collections_path())


@lru_cache(maxsize=8)
def _load(path: Path) -> Collections:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    known = {"tasks", "datasets", "sft_ratio", "pft_methods", "perplexity_thresholds", "models"}
    if not isinstance(raw, dict):
        raise UserError(f"'{path}' holds no mapping; it needs: {', '.join(sorted(known))}.")
    for key in raw:
        choose(f"key in {path.name}:", key, sorted(known))
    if missing := sorted(known - set(raw)):
        raise UserError(f"'{path}' lacks: {', '.join(missing)}.")
    return _validated(path, raw)


def _validated(path: Path, raw: dict[str, Any]) -> Collections:
    datasets = {name: _dataset(path, name, entry) for name, entry in raw["datasets"].items()}
    tasks: dict[str, tuple[str, ...]] = {}
    aliases: dict[str, str] = {}
    for name, entry in raw["tasks"].items():
        tasks[name] = tuple(entry.get("datasets", ()))
        aliases |= dict.fromkeys(entry.get("aliases", ()), name)
        for dataset in tasks[name]:
            choose(f"dataset under task '{name}' of {path.name}:", dataset, datasets)
    return Collections(
        path=path,
        tasks=tasks,
        aliases=aliases,
        datasets=datasets,
        models={name: _model(path, name, entry) for name, entry in raw["models"].items()},
        sft_ratio=tuple(float(value) for value in raw["sft_ratio"]),
        pft_methods=tuple(raw["pft_methods"]),
        perplexity_thresholds=tuple(float(value) for value in raw["perplexity_thresholds"]),
    )


def _dataset(path: Path, name: str, entry: dict[str, Any]) -> DatasetEntry:
    files = {key: value for key, value in entry.items() if key != "loader"}
    if "loader" not in entry:
        raise UserError(f"dataset '{name}' in {path.name} names no loader.")
    for pool in files:
        choose(f"pool of dataset '{name}' in {path.name}:", pool, POOLS)
    return DatasetEntry(name=name, loader=entry["loader"], files=files)


POOLS = ("sft", "preference", "validation", "test")

_MODEL_KEYS = {
    "hub", "from_run", "path", "chat_template", "target_modules", "full_modules",
    "perplexity_thresholds", "settings",
}  # fmt: skip


def _model(path: Path, name: str, entry: dict[str, Any]) -> ModelEntry:
    for key in entry:
        choose(f"key of model '{name}' in {path.name}:", key, sorted(_MODEL_KEYS))
    if sum(key in entry for key in ("hub", "from_run", "path")) != 1:
        raise UserError(f"model '{name}' in {path.name} needs one of hub, from_run and path.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    if "perplexity_thresholds" in values:
        values["perplexity_thresholds"] = tuple(float(v) for v in values["perplexity_thresholds"])
    return ModelEntry(name=name, **values)
