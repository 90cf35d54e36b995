"""Which dataset a run reads, which of its pools, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tuning import config as site
from tuning.data import train_dataset
from tuning.data.prepared import require_current
from tuning.settings import setting

_READERS = {"sft": "SFT", "validation": "perplexity"}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which dataset, which of its pools, and how much of it."""

    dataset: str = setting(flag=False)
    """A key of collections.yaml."""
    dataset_type: str = setting(flag=False)
    """What reads it: `sft`, `pt` (preference tuning), `test` (evaluation) or `validation`."""
    version: str = setting(flag=False)
    """Changes when the content of the pools does that are read."""
    train_size: int | None = setting(None, flag=False)
    """Training examples; None for a fork, which takes what its parent left, and for a test pool."""
    loader: str = setting(flag=False, hashed=False)
    """The loader, as collections.yaml names it."""
    files: dict[str, str] = setting(default_factory=dict, flag=False, hashed=False)
    """The absolute path of each pool's file, where a dataset has files."""
    sources: dict[str, str] = setting(default_factory=dict, flag=False, hashed=False)
    """What the pools of a published dataset were made of."""
    columns: dict[str, str] = setting(default_factory=dict, flag=False, hashed=False)
    """What those sources call a column of ours."""
    system_message: str | None = setting(None, flag=False, hashed=False)
    """The system message of prompts that have none; `version` changes with it."""

    @property
    def entry(self) -> site.DatasetEntry:
        """The dataset as collections.yaml described it when the run was configured."""
        return site.DatasetEntry(
            name=self.dataset,
            loader=self.loader,
            files=self.files,
            sources=self.sources,
            columns=self.columns,
            system_message=self.system_message,
        )

    def where(self, pool: str) -> Callable[[int], str]:
        """How messages name the rows of a pool, by their number."""
        return partial(train_dataset.where, self.entry, pool)

    def rows(self, pool: str, size: int | None = None) -> list[train_dataset.Row]:
        """The first `size` rows of a pool; UserError if its files changed since."""
        train_dataset.require_version(self.entry, self.dataset_type, self.version)
        return train_dataset.rows(self.entry, pool, size)


def dataset_config(name: str, task: str, kind: str, train_size: int | None = None) -> DatasetConfig:
    """A dataset of collections.yaml as a run of a kind reads it.

    Raises UserError for a dataset that the task does not have, a pool that is smaller than
    `train_size`, or a row that SFT, or perplexity, cannot read.
    """
    entry = site.collections().dataset(name, task)
    require_current(entry)
    if train_size is not None:
        train_dataset.require(entry, train_dataset.POOL_OF_TYPE[kind], train_size, "train_size")
    if kind in ("sft", "validation"):
        for pool in train_dataset.READ_BY_TYPE[kind]:
            train_dataset.require_columns(entry, pool, train_dataset.SFT_COLUMNS, _READERS[kind])
    return DatasetConfig(
        dataset=name,
        dataset_type=kind,
        version=train_dataset.version(entry, kind),
        train_size=train_size,
        loader=entry.loader,
        files=dict(entry.files),
        sources=dict(entry.sources),
        columns=dict(entry.columns),
        system_message=entry.system_message,
    )
