"""Where things lie (TUNING_HOME) and what can be chosen (collections.yaml), read once and
validated.

Nothing here imports more than PyYAML: every `--help`, dry run and status passes through it.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuning.methods import METHODS
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
        """Where the weights come from: a hub id, `run:NAME`, or `local` for a folder."""
        return self.hub or (f"run:{self.from_run}" if self.from_run else "local")


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A dataset as collections.yaml describes it; `files` maps a pool to the absolute
    path of its JSONL file."""

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
        """A model by key, hub id (`org/name`) or local folder (`./name`, `/path/name`)."""
        if name in self.models:
            return self.models[name]
        path = Path(name).expanduser().resolve()
        if name.startswith((".", "/", "~")) and path.is_dir():
            # A run's folder has its model in model/, which names nothing.
            named = path.parent if path.name == "model" else path
            return ModelEntry(name=named.name, path=str(path))
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
            return ModelEntry(name=name.replace("/", "--"), hub=name)
        choose("model", name, self.models, "A hub id (org/name) or a folder (./name) works too.")
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
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"'{path}' cannot be read ({reason}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    return _Reader(path).read(raw)


POOLS = ("sft", "preference", "validation", "test")
_TOP = ("datasets", "models", "perplexity_thresholds", "pft_methods", "sft_ratio", "tasks")
_MODEL_KEYS = (
    "chat_template", "from_run", "full_modules", "hub", "path", "perplexity_thresholds", "settings",
    "target_modules",
)  # fmt: skip


class _Reader:
    """Turns the content of collections.yaml into Collections; every mistake is one clear line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, raw: Any) -> Collections:
        """The whole file."""
        name = self.path.name
        if not isinstance(raw, dict):
            raise UserError(f"'{self.path}' holds no mapping; it needs: {', '.join(_TOP)}.")
        for key in raw:
            choose(f"key in {name}:", str(key), _TOP)
        if missing := [key for key in _TOP if key not in raw]:
            raise UserError(f"'{self.path}' lacks: {', '.join(missing)}.")
        datasets = {
            key: self._dataset(key, entry)
            for key, entry in self._mapping(raw["datasets"], "datasets").items()
        }
        tasks: dict[str, tuple[str, ...]] = {}
        aliases: dict[str, str] = {}
        for key, entry in self._mapping(raw["tasks"], "tasks").items():
            tasks[key], others = self._task(key, entry, datasets)
            aliases |= dict.fromkeys(others, key)
        methods = self._names(raw["pft_methods"], "pft_methods")
        for method in methods:
            choose(f"preference method in {name}:", method, METHODS)
        models = self._mapping(raw["models"], "models")
        return Collections(
            path=self.path,
            tasks=tasks,
            aliases=aliases,
            datasets=datasets,
            models={key: self._model(key, entry) for key, entry in models.items()},
            sft_ratio=self._numbers(raw["sft_ratio"], "sft_ratio"),
            pft_methods=methods,
            perplexity_thresholds=self._numbers(
                raw["perplexity_thresholds"], "perplexity_thresholds"
            ),
        )

    def _task(
        self, name: str, entry: Any, datasets: dict[str, DatasetEntry]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The datasets and the aliases of a task."""
        where = f"task '{name}'"
        entry = self._mapping(entry, where)
        for key in entry:
            choose(f"key of {where} in {self.path.name}:", key, ("aliases", "datasets"))
        found = self._names(entry.get("datasets", []), f"{where}: datasets")
        for dataset in found:
            choose(f"dataset under {where} of {self.path.name}:", dataset, datasets)
        return found, self._names(entry.get("aliases", []), f"{where}: aliases")

    def _dataset(self, name: str, entry: Any) -> DatasetEntry:
        where = f"dataset '{name}'"
        entry = self._mapping(entry, where)
        files = {key: value for key, value in entry.items() if key != "loader"}
        if "loader" not in entry:
            raise UserError(f"{where} in {self.path.name} names no loader.")
        for pool, file in files.items():
            choose(f"pool of {where} in {self.path.name}:", pool, POOLS)
            path = Path(self._word(file, f"{where}: {pool}")).expanduser()
            files[pool] = str((self.path.parent / path).resolve())
        return DatasetEntry(name=name, loader=str(entry["loader"]), files=files)

    def _model(self, name: str, entry: Any) -> ModelEntry:
        where = f"model '{name}'"
        entry = self._mapping(entry, where)
        for key in entry:
            choose(f"key of {where} in {self.path.name}:", key, _MODEL_KEYS)
        if sum(key in entry for key in ("hub", "from_run", "path")) != 1:
            raise UserError(f"{where} in {self.path.name} needs one of hub, from_run and path.")
        values: dict[str, Any] = {}
        for key, value in entry.items():
            at = f"{where}: {key}"
            if key == "settings":
                values[key] = self._settings(value, where)
            elif key == "perplexity_thresholds":
                values[key] = self._numbers(value, at)
            elif key.endswith("_modules"):
                values[key] = self._names(value, at)
            else:
                values[key] = self._word(value, at)
        if "path" in values:
            found = Path(values["path"]).expanduser()
            values["path"] = str((self.path.parent / found).resolve())
        return ModelEntry(name=name, **values)

    def _settings(self, value: Any, where: str) -> dict[str, dict[str, Any]]:
        stages = self._mapping(value or {}, f"{where}: settings")
        known = ("pretrain", "sft", "pft", *METHODS, "evaluation")
        for stage in stages:
            choose(f"stage under settings of {where} in {self.path.name}:", stage, known)
        return {
            stage: self._mapping(entry or {}, f"{where}: settings: {stage}")
            for stage, entry in stages.items()
        }

    def _wrong(self, value: Any, where: str, what: str) -> UserError:
        return UserError(f"{self.path.name}: {where} is {value!r}; it must be {what}.")

    def _mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(value, where, "a mapping")
        return {str(key): entry for key, entry in value.items()}

    def _word(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(value, where, "a word")
        return value

    def _names(self, value: Any, where: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self._wrong(value, where, "a list of names")
        return tuple(value)

    def _numbers(self, value: Any, where: str) -> tuple[float, ...]:
        fits = isinstance(value, list) and all(
            isinstance(entry, int | float) and not isinstance(entry, bool) for entry in value
        )
        if not fits:
            raise self._wrong(value, where, "a list of numbers")
        return tuple(float(entry) for entry in value)
