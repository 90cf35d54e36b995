"""How a stage is started and in which environment: the same under every launcher."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tuning import config as site
from tuning.plan import Stage, write_stage


def stage_command(
    stage: Stage, folder: Path, *, wait: bool = True, wandb: str = "off"
) -> list[str]:
    """The words that start a stage of the experiment in `folder` with this Python and this code.

    Writes the file that the stage reads: its resolved configs.
    """
    script = [sys.executable, str(site.PACKAGE / stage.script)]
    if stage.role == "report":
        return [*script, "report", folder.name]
    file = folder / "stages" / f"{stage.name}.stage.json"
    write_stage(file, stage)
    trains = "train" in stage.phases
    return [
        *script, "--stage", str(file),
        *([] if wait else ["--no_wait"]),
        *(["--wandb", wandb] if trains and wandb != "off" else []),
    ]  # fmt: skip


def python_path() -> str:
    """PYTHONPATH with this code first."""
    code = str(Path(site.CHECKOUT))
    others = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p != code]
    return ":".join([code, *others])
