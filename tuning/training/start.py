"""Where a preference run starts: from the base, from an SFT run, or from a sweetspot of one; and
with how many examples. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.evaluation.prompts import require_rewards
from tuning.plan import settled_name
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory, locate
from tuning.sweetspots.store import find_sweetspot
from tuning.training.config_training import PTRunConfig


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a preference run continues: the parent's run and, for a fork, the checkpoint in it."""

    parent: RunDirectory | None
    checkpoint: Path | None
    train_size: int
    """Preference examples; of a fork, what its parent left."""
    recorded: dict[str, Any] | None = None
    """The parent as config.json names it."""

    def named(self, planned: str) -> str:
        """The planned name of the run, with the size that a fork turned out to have."""
        return settled_name(planned, self.train_size)


def start_of(config: PTRunConfig) -> Start:
    """Where a run starts.

    Raises Skipped for a fork whose sweetspot was not reached or that has no budget left, and
    UserError where the parent is not there, the preference pool is too small, or it has rows whose
    responses cannot be rewarded.
    """
    parent = config.parent
    if parent is None:
        return _checked(config, Start(parent=None, checkpoint=None, train_size=_size(config)))
    directory = RunDirectory(locate(site.models_dir(), parent.run_name, parent.hash))
    if directory.hash != parent.hash:
        raise UserError(
            f"the parent run '{parent.run_name}' is missing, or was retrained with other settings."
        )
    recorded = {"run_name": directory.name, "hash": parent.hash}
    if parent.sweetspot is None:
        if not directory.done("train"):
            raise UserError(f"the parent run '{parent.run_name}' is not trained yet.")
        start = Start(
            parent=directory, checkpoint=None, train_size=_size(config), recorded=recorded
        )
        return _checked(config, start)
    spot = find_sweetspot(directory, parent.sweetspot)
    size = spot.left_of(parent.total_data or 0)
    recorded["sweetspot"] = spot.label
    start = Start(parent=directory, checkpoint=spot.path, train_size=size, recorded=recorded)
    return _checked(config, start)


def _size(config: PTRunConfig) -> int:
    assert config.dataset.train_size is not None
    return config.dataset.train_size


def _checked(config: PTRunConfig, start: Start) -> Start:
    entry = config.dataset.entry
    train_dataset.require(entry, "preference", start.train_size, "the preference budget")
    require_rewards(entry, config.task, [config.pft_method], start.train_size)
    return start
