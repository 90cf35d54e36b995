"""What one stage process is to do: as a plan says, in a file, or as flags say.

    python tuning/run_sft.py --stage FILE [--no_wait] [--wandb MODE]

is how launchers start a stage. The file holds the stage with its resolved configs, so nothing is
looked up again, and the process trains the run that was planned or none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.evaluation.config import EvaluationRunConfig
from tuning.flags import Parser, restore
from tuning.phases.options import Options, add_wandb, wandb_mode
from tuning.plan import Stage, read_stage
from tuning.runs.errors import StageFailed
from tuning.training.config_training import RUN_CONFIGS

STAGE_FLAG = "--stage"


@dataclass(frozen=True, kw_only=True)
class Work:
    """The configs and phases of a stage."""

    options: Options
    run: Any = None
    """The config of the run that is trained, or was; None where only a model is evaluated."""
    name: str = ""
    """The planned name of the run's directory."""
    evaluation: EvaluationRunConfig | None = None
    """None where nothing is evaluated."""


def planned(argv: Sequence[str] | None = None) -> Work | None:
    """The work of a stage that a launcher started; None for a command with flags of its own."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != [STAGE_FLAG]:
        return None
    parser = Parser(prog="a stage", description=__doc__)
    parser.add_argument(STAGE_FLAG, required=True, type=Path, help="the stage, as a launcher wrote")
    parser.add_argument("--no_wait", action="store_true", help="fail if another process has it")
    add_wandb(parser)
    args = parser.parse_args(words)
    stage = read_stage(args.stage)
    options = Options(
        do_training="train" in stage.phases,
        do_inference="infer" in stage.phases,
        do_evaluation="evaluate" in stage.phases,
        wait=not args.no_wait,
        wandb=wandb_mode(args.wandb),
    )
    return Work(
        options=options,
        run=run_of(stage),
        name=stage.name,
        evaluation=evaluation_of(stage) if options.evaluates else None,
    )


def run_of(stage: Stage) -> Any:
    """The config of the run of a stage; None where it trains none.

    Raises StageFailed for a config that is no longer what was planned.
    """
    if stage.run is None:
        return None
    config = restore(RUN_CONFIGS[stage.kind], stage.run)
    _require_hash(stage, config.hash, stage.hash)
    return config


def evaluation_of(stage: Stage) -> EvaluationRunConfig:
    """The config of the evaluation of a stage."""
    config = restore(EvaluationRunConfig, stage.evaluation or {})
    _require_hash(stage, config.hash, stage.evaluation_hash)
    return config


def _require_hash(stage: Stage, found: str, planned: str | None) -> None:
    if found != planned:
        raise StageFailed(
            f"stage '{stage.name}' was planned by other code: its settings have the hash "
            f"{found[:8]} here, and {(planned or '')[:8]} in the plan. Start the experiment anew."
        )
