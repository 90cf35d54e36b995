"""What a plan needs from the network: which files of it are not here, and how to get them.

Compute nodes often reach no network, so a submission names what is missing and `tuning prefetch`
fetches it on a machine that has one. Datasets are made by code, lie in local files, or were made of
published ones before the plan (tuning/data/preparation.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuning.plan import Plan, Stage
from tuning.runs import disk
from tuning.runs.errors import UserError
from tuning.runs.log import logger
from tuning.tasks.registry import TASKS
from tuning.weights.hub import lacking, wanted

_LOGIN = "set HF_TOKEN, or log in with 'hf auth login'"


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
        with _explained(hub):
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
    """What the datasets of a plan lack; only those of local files can lack anything."""
    configs = [stage.run.get("dataset") for stage in plan.stages if stage.run]
    configs += [stage.evaluation["data"] for stage in plan.stages if stage.evaluation]
    files = {c["dataset"]: c["files"].values() for c in configs if c and c["loader"] == "jsonl"}
    lost = {name: [f for f in of if not Path(f).is_file()] for name, of in files.items()}
    return [f"dataset '{name}' lacks {_listed(left)}" for name, left in lost.items() if left]


def _download(hub: str) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """Shown on a terminal even where the bars of libraries are switched off for stages."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **({"disable": None} | kwargs))

    listed = HfApi().model_info(hub, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in listed}
    names = wanted(sizes)
    gigabytes = sum(sizes[name] for name in names) / 1e9
    logger.info(f"{hub}: fetching {len(names)} files, {gigabytes:.3g} GB")
    snapshot_download(hub, allow_patterns=names, tqdm_class=Bar)


@contextlib.contextmanager
def _explained(hub: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(
            f"'{hub}' cannot be fetched: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"'{hub}' {_refused(hub, constants.ENDPOINT, error)}.") from None
    except (httpx.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = (
            f"run this where {constants.ENDPOINT} is reachable, or set HF_ENDPOINT to a mirror; "
            "completed files are kept"
        )
        if disk.is_full(error):
            advice = f"free space under {constants.HF_HUB_CACHE}, or set HF_HOME to another disk"
        raise UserError(f"'{hub}' cannot be fetched ({reason}): {advice}.") from None


def _refused(hub: str, endpoint: str, error: Any) -> str:
    """What an answer of the hub other than a file means, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    code = error.response.status_code
    if isinstance(error, GatedRepoError):
        return (
            f"is gated (HTTP {code}): request access at {endpoint}/{hub}, then {_LOGIN} with that "
            "account"
        )
    if isinstance(error, RepositoryNotFoundError) or code == 404:
        private = f"for a private repository {_LOGIN}"
        return f"is not at {endpoint} (HTTP {code}): check the name; {private}"
    if code in (401, 403):
        return f"is refused by {endpoint} (HTTP {code}): {_LOGIN} with an account that has access"
    return f"cannot be fetched: {endpoint} answers HTTP {code}; try again later"


def _listed(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
