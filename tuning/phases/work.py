"""The work of one stage process, from a stage file or from flags.

    python tuning/run_sft.py --stage FILE [--no_wait] [--wandb MODE]

is how launchers start a stage. The file holds the resolved configs, so collections.yaml is not read
again; a stage whose configs no longer hash to what was planned is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuning.autotune.config import AutotuneConfig
from tuning.evaluation.before_after import BeforeAfterConfig, HeldOutConfig
from tuning.evaluation.config import EvaluationRunConfig
from tuning.flags import Parser, restore
from tuning.phases.options import Options, add_wandb, wandb_mode
from tuning.plan import Stage, read_stage
from tuning.runs.errors import StageFailed, UserError
from tuning.training.config import require_shared
from tuning.training.config_training import RUN_CONFIGS

STAGE_FLAG = "--stage"


@dataclass(frozen=True, kw_only=True)
class Work:
    """The configs and phases of a stage."""

    options: Options
    run: Any = None
    """The config of the run, to train it or as it was trained; None without a run."""
    name: str = ""
    """The planned name of the run directory."""
    evaluation: EvaluationRunConfig | None = None
    """None if nothing is evaluated."""

    def measured(self, held_out: HeldOutConfig, validation_size: int) -> Work:
        """The same work, with measuring before and after the training."""
        from tuning.phases.before_after import before_after_config

        scored = self.options.do_inference and self.options.do_evaluation
        sampling = self.evaluation.sampling if self.evaluation and scored else None
        config = before_after_config(self.run, held_out, sampling, validation_size)
        return replace(self, options=replace(self.options, before_after=config))


def planned(argv: Sequence[str] | None = None, kind: str | None = None) -> Work | None:
    """The work in a stage file; None if the command line does not start with `--stage`.

    UserError for a stage of another `kind` than the entry point's, where one is given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != [STAGE_FLAG]:
        return None
    parser = Parser(prog="a stage", description=__doc__)
    parser.add_argument(STAGE_FLAG, required=True, type=Path, help="a launcher's stage file")
    parser.add_argument("--no_wait", action="store_true", help="fail if another process holds it")
    add_wandb(parser)
    args = parser.parse_args(words)
    stage = read_stage(args.stage)
    config = stage.evaluation if stage.kind == "evaluation" else stage.run
    if kind is not None and (stage.kind != kind or config is None):
        raise UserError(
            f"'{args.stage}' is a stage of kind {stage.kind}; this runs those of kind {kind} that "
            "have a config."
        )
    measures = stage.before_after if "measure" in stage.phases else None
    options = Options(
        do_training="train" in stage.phases,
        do_inference="infer" in stage.phases,
        do_evaluation="evaluate" in stage.phases,
        wait=not args.no_wait,
        wandb=wandb_mode(args.wandb),
        autotune=restore(AutotuneConfig, stage.autotune or {}) if stage.tunes else None,
        before_after=restore(BeforeAfterConfig, measures) if measures else None,
        first_prompts=stage.first_prompts,
    )
    return Work(
        options=options,
        run=run_of(stage),
        name=stage.name,
        evaluation=evaluation_of(stage) if options.evaluates else None,
    )


def run_of(stage: Stage) -> Any:
    """The run config of a stage; None for a stage without a run.

    Raises StageFailed if its hash is not the planned one.
    """
    if stage.run is None or stage.kind not in RUN_CONFIGS:
        return None
    config = restore(RUN_CONFIGS[stage.kind], stage.run)
    _require_hash(stage, config.hash, stage.hash)
    return config


def require_shares(stages: Iterable[Stage], processes_of: Callable[[Stage], int]) -> None:
    """Raise UserError for an SFT or preference training that its processes cannot share."""
    for stage in stages:
        trains = "train" in stage.phases and stage.kind != "pretrain"
        if trains and (n := processes_of(stage)) > 1:
            require_shared(run_of(stage), n)


def evaluation_of(stage: Stage) -> EvaluationRunConfig:
    """The evaluation config of a stage; StageFailed if its hash is not the planned one."""
    config = restore(EvaluationRunConfig, stage.evaluation or {})
    _require_hash(stage, config.hash, stage.evaluation_hash)
    return config


def _require_hash(stage: Stage, actual: str, planned: str | None) -> None:
    if actual != planned:
        raise StageFailed(
            f"stage '{stage.name}' was planned by another version of the code: its settings hash "
            f"to {actual[:8]} here and to {(planned or '')[:8]} in the plan. Submit the experiment "
            "again."
        )
