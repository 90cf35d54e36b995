"""What a search is told: the run that it serves, and the settings of the search. None of it is
hashed into the run: what is chosen changes memory and speed only.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from tuning.autotune.heuristic import TARGET_MFU
from tuning.autotune.search import MAX_ITERATIONS
from tuning.flags import add_flags, build, given, plain, restore
from tuning.runs.errors import UserError
from tuning.settings import require
from tuning.training.config_training import RUN_CONFIGS

PROFILE_STEPS = 50
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class AutotuneConfig:
    """Autotune."""

    strategy: Literal["predict", "heuristic", "bayesian", "grid"] = "predict"
    """How to search: predict (a cost model, then confirm), heuristic, bayesian, or grid (all)."""
    time_budget: float | None = None
    """Seconds that the search may take (default: a tenth of what is left of the job, else 600)."""
    profile_steps: int = PROFILE_STEPS
    """Timed optimizer steps of a trial; fewer where the time budget is short."""
    max_iterations: int = MAX_ITERATIONS
    """Most trials of a search."""
    memory_cap: str | None = None
    """Most host memory of a trial, 24G (default: what the job, the cgroup or the machine has); on a
    CPU the memory that is tuned for."""
    mfu_target: float = TARGET_MFU
    """Model FLOPs utilization that --strategy heuristic is content with."""
    score_alpha: float = 1.0
    """Weight of speed in the score, alpha * MFU - beta * max(0, memory - 0.85)^2."""
    score_beta: float = 1.0
    """Weight of the memory penalty in the score."""

    def __post_init__(self) -> None:
        for name in ("profile_steps", "max_iterations"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("score_alpha", "score_beta"):
            require(self, name, 0 <= getattr(self, name) < float("inf"), "zero or more")
        require(self, "mfu_target", 0 < self.mfu_target <= 1, "above 0 and at most 1")
        budget = self.time_budget
        fits = budget is None or 0 < budget < float("inf")
        require(self, "time_budget", fits, "above zero, in seconds")
        self.cap_bytes  # noqa: B018  refuses what is no size

    @property
    def cap_bytes(self) -> int | None:
        """`memory_cap` in bytes; UserError for what is no size."""
        if self.memory_cap is None:
            return None
        match = _SIZE.fullmatch(self.memory_cap.strip())
        if match is None or float(match[1]) == 0:
            raise UserError(
                f"memory_cap is '{self.memory_cap}'; give a size above zero, such as 900M or 24G."
            )
        return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True, kw_only=True)
class AutotuneRunConfig:
    """A search: the training that it serves, as its entry point was told of it, and how to search.

    Complete in itself, and restored by `restore()`.
    """

    serves: str
    """The kind of stage: sft, pft or pretrain."""
    run: dict[str, Any]
    """The config of the run, as JSON values."""
    search: AutotuneConfig
    processes: int = 1
    """Ranks that train the run, all on this machine."""
    train_size: int | None = None
    """Examples of a preference run; a fork knows them when it starts."""
    parent: str | None = None
    """The folder of the run that a preference run starts from."""
    checkpoint: str | None = None
    """The folder of the sweetspot in it."""

    @classmethod
    def of(cls, serves: str, run: Any, search: AutotuneConfig, **more: Any) -> AutotuneRunConfig:
        """The search that serves a run."""
        return cls(serves=serves, run=plain(run), search=search, **more)

    @property
    def trained(self) -> Any:
        """The config of the run."""
        return restore(RUN_CONFIGS[self.serves], self.run)


def add_autotune_flags(parser: argparse.ArgumentParser, *, switch: bool = True) -> None:
    """The settings of a search, and --autotune unless the command has it already."""
    if switch:
        add_autotune_switch(parser)
    add_flags(parser, AutotuneConfig, title="autotune")


def add_autotune_switch(parser: argparse.ArgumentParser) -> None:
    """--autotune."""
    parser.add_argument(
        "--autotune",
        action="store_true",
        help="before training, find the fastest safe micro-batch and the like on this machine",
    )


def autotune_given(args: argparse.Namespace, on: bool) -> AutotuneConfig | None:
    """The search that a command line describes, if it is `on`; None if not.

    UserError for settings of a search that is off.
    """
    values = given(args, (AutotuneConfig,))
    if on:
        return build(AutotuneConfig, values)
    if values:
        raise UserError(f"--{next(iter(values))} is for --autotune; add it.")
    return None


def autotune_words(search: AutotuneConfig) -> list[str]:
    """The flags that lead to a search."""
    default, words = AutotuneConfig(), ["--autotune"]
    for entry in fields(search):
        value = getattr(search, entry.name)
        if value != getattr(default, entry.name):
            words += [f"--{entry.name}", str(value)]
    return words
