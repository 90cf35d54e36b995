"""Where things lie (TUNING_HOME) and what can be chosen (collections.yaml), read once and
validated.

Nothing here imports more than PyYAML: every `--help`, dry run and status passes through it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuning.methods import METHODS
from tuning.runs.errors import UserError, choose
from tuning.runs.hub import ID_RULE, is_id
from tuning.runs.names import folder_label, require_distinct, require_name, require_told_apart
from tuning.schema import KEY, from_mapping, read_yaml

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
PUBLISHED = "published"
"""The loader whose datasets name a source of each kind."""
KINDS = ("sft", "preference", "validation", "test")
"""The pools of a dataset, and the kinds of its sources."""
DATA_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
"""The files that published rows are read from, and the formats that `datasets` calls them."""
CHAT_TEMPLATES = PACKAGE / "data" / "chat_templates"


def expanded(path: str) -> Path:
    """An absolute path, with `~` expanded; UserError for the home of an unknown user."""
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"'{path}' is not a path here: {str(error).rstrip('.')}.") from None


def home() -> Path:
    """The root of models, outputs, datasets and caches: TUNING_HOME, or tuning/ in the checkout."""
    return expanded(os.environ.get("TUNING_HOME") or str(PACKAGE))


def models_dir() -> Path:
    """One folder a training run."""
    return home() / "models"


def outputs_dir(task: str) -> Path:
    """One folder an evaluated model: responses.jsonl and scores.json."""
    return home() / "outputs" / task


def reports_dir() -> Path:
    """One folder an experiment: plan.json, results.csv and report.html."""
    return home() / "outputs" / "reports"


def merged_dir() -> Path:
    """One folder an adapter that was merged into its base for an inference engine."""
    return home() / "cache" / "merged"


def chat_template(name: str) -> Path:
    """The file of a chat template; UserError for an unknown one."""
    known = sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja"))
    return CHAT_TEMPLATES / f"{choose('chat template', name, known)}.jinja"


def require_writable_home(log_dir: str | None = None) -> None:
    """Raise UserError unless files can be made under TUNING_HOME, in its folders, and in another
    folder of logs.
    """
    if log_dir:
        require_folder("log_dir", expanded(log_dir))
    root = home()
    for folder in (models_dir(), reports_dir(), root / "outputs/logs", root / "data/datasets"):
        require_folder(f"TUNING_HOME '{root}'", folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"TUNING_HOME '{root}' cannot be written ({error.strerror}); "
            "point TUNING_HOME at a folder of yours."
        ) from None


def require_folder(what: str, folder: Path) -> None:
    """Raise UserError where `folder`, or one that it lies in, is something else."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is not None and not there.is_dir():
        raise UserError(
            f"{what} cannot be written: '{there}' is no folder; move it away, or name another "
            "place."
        )


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model as collections.yaml describes it."""

    name: str = field(metadata=KEY)
    hub: str | None = None
    from_run: str | None = None
    path: str | None = None
    chat_template: str | None = None
    target_modules: tuple[str, ...] | None = None
    full_modules: tuple[str, ...] = ()
    perplexity_thresholds: tuple[float, ...] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings that replace defaults, by section; typed when the configs are built."""

    @property
    def source(self) -> str:
        """Where the weights come from: a hub id, `run:NAME`, or `local` for a folder."""
        return self.hub or (f"run:{self.from_run}" if self.from_run else "local")


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A dataset as collections.yaml describes it."""

    name: str
    loader: str
    files: dict[str, str] = field(default_factory=dict)
    """The absolute path of each pool's JSON lines file."""
    sources: dict[str, str] = field(default_factory=dict)
    """Of a published dataset: where the rows of each kind come from, as it is written."""
    columns: dict[str, str] = field(default_factory=dict)
    """Of a published dataset: what its sources call a column of ours."""
    system_message: str | None = None
    """The system message of prompts that have none, in every pool."""


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
        is_path = name.startswith((".", "/", "~"))
        if is_path and (path := expanded(name)).is_dir():
            return ModelEntry(name=folder_label(path), path=str(path))
        if "/" in name and is_id(name):
            return ModelEntry(name=name.replace("/", "--"), hub=name)
        choose("model", name, self.models, "A hub id (org/name) or a folder (./name) works too.")
        raise AssertionError("choose() raises for what is not listed")

    def thresholds(self, model: ModelEntry) -> tuple[float, ...]:
        """The perplexity thresholds of a sweetspot experiment that names none."""
        return model.perplexity_thresholds or self.perplexity_thresholds


def collections_path() -> Path:
    """collections.yaml of the checkout, or what TUNING_COLLECTIONS names."""
    return expanded(os.environ.get("TUNING_COLLECTIONS") or str(CHECKOUT / "collections.yaml"))


def collections() -> Collections:
    """The validated collections.yaml; parsed once for each file that is asked for."""
    return _load(collections_path())


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A task in collections.yaml."""

    datasets: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """A dataset in collections.yaml: its loader, and the file or the source of each pool."""

    loader: str
    system_message: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    sft: str | None = None
    preference: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True, kw_only=True)
class _File:
    """collections.yaml as it is written."""

    tasks: dict[str, _Task]
    datasets: dict[str, _Dataset]
    sft_ratio: tuple[float, ...]
    pft_methods: tuple[str, ...]
    perplexity_thresholds: tuple[float, ...]
    models: dict[str, ModelEntry]


@lru_cache(maxsize=8)
def _load(path: Path) -> Collections:
    file = from_mapping(_File, read_yaml(path), path.name)
    _check_names(file, path.name)
    for name, task in file.tasks.items():
        for dataset in task.datasets:
            choose(f"dataset in {path.name}: tasks: {name}:", dataset, file.datasets)
    for method in file.pft_methods:
        choose(f"preference method in {path.name}:", method, METHODS)
    return Collections(
        path=path,
        tasks={name: task.datasets for name, task in file.tasks.items()},
        aliases={alias: name for name, task in file.tasks.items() for alias in task.aliases},
        datasets={name: _dataset(name, entry, path) for name, entry in file.datasets.items()},
        models={name: _model(entry, path) for name, entry in file.models.items()},
        sft_ratio=file.sft_ratio,
        pft_methods=file.pft_methods,
        perplexity_thresholds=file.perplexity_thresholds,
    )


def _check_names(file: _File, where: str) -> None:
    """Raise UserError for names that cannot be folders, or that are not told apart as such."""
    aliases = [alias for name, task in file.tasks.items() for alias in {*task.aliases} - {name}]
    for alias in aliases:
        if alias in file.tasks or aliases.count(alias) > 1:
            raise UserError(f"{where}: the alias '{alias}' names two tasks.")
    runs = [entry.from_run for entry in file.models.values() if entry.from_run is not None]
    for kind, names in (
        ("task", [*file.tasks, *aliases]),
        ("dataset", list(file.datasets)),
        ("model", [name.replace("/", "--") for name in file.models]),
        ("from_run", runs),
    ):
        for name in names:
            require_name(f"{where}: {kind}", name)
        require_distinct(f"{where}: {kind}", names)
    require_told_apart(f"{where}: model", file.models)


def _dataset(name: str, entry: _Dataset, path: Path) -> DatasetEntry:
    named = {pool: getattr(entry, pool) for pool in KINDS if getattr(entry, pool) is not None}
    if entry.loader == PUBLISHED:
        if not named:
            raise UserError(f"{path.name}: datasets: {name} needs one of {', '.join(KINDS)}.")
        return DatasetEntry(
            name=name,
            loader=entry.loader,
            sources=named,
            columns=entry.columns,
            system_message=entry.system_message,
        )
    if entry.columns:
        raise UserError(
            f"{path.name}: datasets: {name}: columns are named for loader {PUBLISHED} only; its "
            f"loader is {entry.loader}."
        )
    return DatasetEntry(
        name=name,
        loader=entry.loader,
        files={pool: _beside(path, file) for pool, file in named.items()},
        system_message=entry.system_message,
    )


def _model(entry: ModelEntry, path: Path) -> ModelEntry:
    if sum(source is not None for source in (entry.hub, entry.from_run, entry.path)) != 1:
        raise UserError(f"{path.name}: models: {entry.name} needs one of hub, from_run and path.")
    if entry.hub is not None and not is_id(entry.hub):
        raise UserError(
            f"{path.name}: models: {entry.name}: hub is {entry.hub!r:.80}; it must be {ID_RULE}; "
            "or give a folder as path."
        )
    if entry.chat_template is not None:
        chat_template(entry.chat_template)
    # pft is for all preference methods.
    sections = ("pretrain", "sft", "pft", *METHODS, "evaluation")
    for section in entry.settings:
        choose(f"key in {path.name}: models: {entry.name}: settings:", section, sections)
    return replace(entry, path=_beside(path, entry.path)) if entry.path else entry


def _beside(path: Path, file: str) -> str:
    """A file's absolute path; a relative one starts at the folder of collections.yaml."""
    return str(expanded(file if file.startswith("~") else str(path.parent / file)))
