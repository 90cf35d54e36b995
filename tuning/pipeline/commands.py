"""The command of a stage and the environment in which it runs: the same under every launcher."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tuning import config as site
from tuning.runs.stages import Stage


def stage_command(stage: Stage, *, wait: bool = True, wandb: str = "off") -> list[str]:
    """The words that start a stage with this Python and this code."""
    script, *flags = stage.command
    trains = stage.kind in ("pretrain", "sft", "pft") and "train" in stage.phases
    return [
        sys.executable, str(site.PACKAGE / script), *flags,
        *([] if wait else ["--no_wait"]),
        *(["--wandb", wandb] if trains and wandb != "off" else []),
    ]  # fmt: skip


def python_path() -> str:
    """PYTHONPATH with this code first."""
    code = str(Path(site.CHECKOUT))
    others = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p != code]
    return ":".join([code, *others])
