"""What a plan needs from the network: which files of it are not here, and how to get them.

Compute nodes often reach no network, so a submission names what is missing and `tuning prefetch`
fetches it where there is one. Only hub models are ever fetched: the datasets of this project are
made by code (`arith`) or lie in local files (`jsonl`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.plan import Plan, Stage
from tuning.runs import disk
from tuning.runs.atomic import read_json
from tuning.runs.errors import UserError
from tuning.runs.log import logger
from tuning.weights.shape import TOKENIZERS

_SMALL = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_WEIGHTS = (
    ("model.safetensors", re.compile(r"model(-\d+-of-\d+)?\.safetensors")),
    ("pytorch_model.bin", re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")),
)
"""The single file of each format and what its shards are called, in the order of preference."""


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
    return [
        *(
            f"model '{name}' is not whole in the Hugging Face cache ('{hub}' lacks {what})"
            for name, hub in hub_models(plan).items()
            if (what := _listed(lacking(hub)))
        ),
        *(line for entry in _datasets(plan) for line in _missing_data(entry)),
    ]


def fetch(plan: Plan) -> None:
    """Download every hub model of a plan that is not whole here.

    A file that is whole is not fetched again. A connection that breaks is taken up where it broke;
    what is left of a file by a process that was stopped is not. Raises UserError that names the
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
                f"'{hub}' is no model that can be trained here: its repository lacks "
                f"{_listed(left)}. Name another repository."
            )
        logger.info(f"{hub}: fetched")
    for line in (line for entry in _datasets(plan) for line in _missing_data(entry)):
        logger.warning(line)


def offline_environment() -> dict[str, str]:
    """The variables with which a job never asks the hub, and so never waits for one it cannot
    reach.
    """
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def snapshot_folder(hub: str) -> Path | None:
    """Where the Hugging Face cache has the main revision of a model; None where it has none."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}"
    try:
        commit = (repository / "refs" / constants.DEFAULT_REVISION).read_text().strip()
    except OSError:
        return None
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def lacking(hub: str) -> list[str]:
    """The files that from_pretrained needs of a hub model and the cache does not have whole."""
    folder = snapshot_folder(hub)
    if folder is None:
        return ["all files"]
    left = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        left.append("a tokenizer")
    return left + _lacking_weights(folder) or _lacking_of_listing(hub, folder)


def _lacking_weights(folder: Path) -> list[str]:
    """The weight files that are not there: one file, or the shards that an index names."""
    for single, _ in _WEIGHTS:
        if (folder / single).is_file():
            return []
        with contextlib.suppress(ValueError, AttributeError):
            index = read_json(folder / f"{single}.index.json") or {}
            shards = sorted(set(index.get("weight_map", {}).values()))
            if shards:
                return [name for name in shards if not (folder / name).is_file()]
    return ["model.safetensors"]


def _lacking_of_listing(hub: str, folder: Path) -> list[str]:
    """What else a download was to bring, where the cache has the listing that it began with."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        sizes = {file.path: file.size for file in get_cached_repo_tree(hub, revision=folder.name)}
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return []
    return [name for name in wanted(sizes) if _size(folder / name) != sizes[name]]


def wanted(files: Iterable[str]) -> list[str]:
    """Of the files of a repository, those that a model is loaded from: configs, the tokenizer, and
    weights in one format, safetensors where there are any.
    """
    names = sorted(files)
    small = [n for n in names if n.endswith(_SMALL) and "/" not in n]
    small += [n for n in names if n.startswith("additional_chat_templates/")]
    weights = ([n for n in names if pattern.fullmatch(n)] for _, pattern in _WEIGHTS)
    return small + next(filter(None, weights), [])


def _base_of(stage: Stage) -> dict[str, Any] | None:
    """The base model that a stage loads, as its config has it."""
    if stage.run and stage.kind != "pretrain":
        return dict(stage.run["model"])
    return dict(stage.evaluation["base"]) if stage.evaluation else None


def _datasets(plan: Plan) -> list[site.DatasetEntry]:
    """The datasets that the stages of a plan read."""
    configs = [stage.run and stage.run.get("dataset") for stage in plan.stages]
    configs += [stage.evaluation and stage.evaluation["data"] for stage in plan.stages]
    found = {c["dataset"]: c for c in configs if c}
    return [
        site.DatasetEntry(name=name, loader=c["loader"], files=c["files"])
        for name, c in found.items()
    ]


def _missing_data(entry: site.DatasetEntry) -> list[str]:
    """What a dataset lacks. A loader that reads from the hub says so here, and `fetch` gets it."""
    if entry.loader != "jsonl":
        return []
    lost = [file for file in entry.files.values() if not Path(file).is_file()]
    return [f"dataset '{entry.name}' lacks {_listed(lost)}"] if lost else []


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
        raise UserError(_refused(hub, constants.ENDPOINT, error)) from None
    except (httpx.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if disk.is_full(error):
            advice = f"free space under {constants.HF_HUB_CACHE}, or set HF_HOME to another disk"
        else:
            advice = (
                f"run this where {constants.ENDPOINT} is reached, or set HF_ENDPOINT to a mirror; "
                "files that are whole are kept"
            )
        raise UserError(f"'{hub}' cannot be fetched ({reason}): {advice}.") from None


def _refused(hub: str, endpoint: str, error: Any) -> str:
    """What an answer of the hub that is no file means, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    login = "set HF_TOKEN, or log in with 'hf auth login'"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        ask = f"ask for access at {endpoint}/{hub}, then {login} as the one who has it"
        return f"'{hub}' is gated (HTTP {status}): {ask}."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"'{hub}' is not at {endpoint} (HTTP {status}): check the name; for a private "
            f"repository {login}."
        )
    if status in (401, 403):
        return f"'{hub}' is refused by {endpoint} (HTTP {status}): {login} as one who may read it."
    return f"'{hub}' cannot be fetched: {endpoint} answers HTTP {status}; try again later."


def _listed(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
