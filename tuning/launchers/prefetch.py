"""What a plan needs from the network: which files of it are not here, and how to get them.

Compute nodes often reach no network, so a submission names what is missing and `tuning prefetch`
fetches it on a machine that has one. Datasets are made by code, lie in local files, or were made of
published ones before the plan (tuning/data/preparation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuning.data.train_dataset import READ_BY_TYPE
from tuning.plan import Plan, Stage
from tuning.runs.errors import UserError
from tuning.runs.hub import PATIENCE, explained
from tuning.runs.log import logger
from tuning.tasks.registry import TASKS
from tuning.weights.hub import lacking, wanted


def hub_models(plan: Plan) -> dict[str, str]:
    """{model key or hub id: hub id} of the hub models that the stages of a plan load."""
    found = {}
    for model in filter(None, map(_base_of, plan.stages)):
        if model["path"] is None and not model["source"].startswith("run:"):
            found[model["model"]] = model["source"]
    return found


def missing(plan: Plan) -> list[str]:
    """What to say, without a full stop, of each hub model that is not whole in the Hugging Face
    cache and of each dataset whose files are not there; [] where the plan needs no network.
    """
    models = [
        f"model '{name}' is incomplete in the Hugging Face cache ('{hub}' lacks {_listed(left)})"
        for name, hub in hub_models(plan).items()
        if (left := lacking(hub))
    ]
    tasks = [
        f"task '{name}' lacks what it grades with"
        for name in _graded(plan)
        if not TASKS[name].is_ready()
    ]
    return models + tasks + _missing_data(plan)


def _graded(plan: Plan) -> list[str]:
    """The tasks that the stages of a plan evaluate."""
    found = (stage.evaluation["task"] for stage in plan.stages if stage.evaluation)
    return [name for name in dict.fromkeys(found) if name in TASKS]


def fetch(plan: Plan) -> None:
    """Download every hub model of a plan that is not whole here, and what its tasks grade with.

    A file that is whole is not fetched again. A connection that breaks is taken up where it broke;
    a partial file of a process that was stopped is not resumed. Raises UserError that names the
    repository, the reason and what to do.
    """
    for hub in dict.fromkeys(hub_models(plan).values()):
        if not lacking(hub):
            logger.info(f"{hub}: already here")
            continue
        with explained(hub):
            _download(hub)
        if left := lacking(hub):
            raise UserError(
                f"'{hub}' cannot be used for training: its repository lacks "
                f"{_listed(left)}. Name another repository."
            )
        logger.info(f"{hub}: fetched")
    for name in _graded(plan):
        TASKS[name].fetch()
    for line in _missing_data(plan):
        logger.warning(line)


def offline_environment() -> dict[str, str]:
    """The variables with which a job never asks the hub, and so never waits for one it cannot
    reach.
    """
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def needless(plan: Plan) -> dict[str, str]:
    """The same where a plan has models of the hub and lacks nothing; else none."""
    return offline_environment() if hub_models(plan) and not missing(plan) else {}


def cache_folders() -> tuple[str, ...]:
    """Where the Hugging Face cache lies, if there is one."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME)
    return (str(folder),) if folder.is_dir() else ()


def _base_of(stage: Stage) -> dict[str, Any] | None:
    """The base model that a stage loads, as its config has it."""
    if stage.run and stage.kind != "pretrain":
        return dict(stage.run["model"])
    return dict(stage.evaluation["base"]) if stage.evaluation else None


def _missing_data(plan: Plan) -> list[str]:
    """What the datasets of a plan lack; only those of local files can lack anything, and only of
    the pools that are read.
    """
    configs = [stage.run.get("dataset") for stage in plan.stages if stage.run]
    configs += [stage.evaluation["data"] for stage in plan.stages if stage.evaluation]
    lost: dict[str, dict[str, None]] = {}
    for config in configs:
        if config and config["loader"] == "jsonl":
            read = READ_BY_TYPE[config["dataset_type"]]
            files = [file for pool, file in config["files"].items() if pool in read]
            absent = dict.fromkeys(file for file in files if not Path(file).is_file())
            lost.setdefault(config["dataset"], {}).update(absent)
    return [f"dataset '{name}' lacks {_listed(list(left))}" for name, left in lost.items() if left]


def _download(hub: str) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """Shown on a terminal even where the bars of libraries are switched off for stages."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **({"disable": None} | kwargs))

    listed = HfApi().model_info(hub, files_metadata=True, timeout=PATIENCE).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in listed}
    names = wanted(sizes)
    gigabytes = sum(sizes[name] for name in names) / 1e9
    logger.info(f"{hub}: fetching {len(names)} files, {gigabytes:.3g} GB")
    snapshot_download(hub, allow_patterns=names, tqdm_class=Bar)


def _listed(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
