"""Pre-train a small model from scratch, tokenizer and chat template included.

    python tuning/run_pretrain.py --model tiny

Writes TUNING_HOME/models/{model}/: config.json, status.json, metrics.jsonl, result.json, and
model/, which transformers loads and every later stage takes as a base. Run again, it continues or
says that it is done. Under torchrun the processes share the batch:

    torchrun --nproc_per_node 2 tuning/run_pretrain.py --model tiny
"""

from __future__ import annotations

from collections.abc import Sequence

from tuning import config as site
from tuning.flags import Parser, add_flags, given


def parser() -> Parser:
    """The flags: those of the model's shape and of its pre-training."""
    from tuning.engine.run_config import PRETRAIN_PARTS

    made = Parser(prog="run_pretrain.py", description=__doc__)
    made.add_argument("--model", default="tiny", help="a model that is made here (default: tiny)")
    made.add_argument("--force", action="store_true", help="train anew where it is done already")
    made.add_argument("--no_wait", action="store_true", help="fail if another process has the run")
    for part in PRETRAIN_PARTS:
        add_flags(made, part)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the stage."""
    args = parser().parse_args(argv)
    from tuning.engine.run_config import PRETRAIN_PARTS, pretrain_config
    from tuning.runs import interrupt
    from tuning.runs.rundir import RunDirectory
    from tuning.training import stage

    config = pretrain_config(args.model, given(args, PRETRAIN_PARTS))
    site.require_writable_home()
    interrupt.install()

    def body(directory: RunDirectory, _report_to: list[str]) -> None:
        from tuning.engine.pretraining import pretrain

        pretrain(config, directory)

    options = stage.Options(do_training=True, wait=not args.no_wait, force=args.force)
    stage.train(config.identity(), body, options, joined=True)
    return 0


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
