"""The sweetspot experiment: SFT with checkpoints at sweetspots of perplexity or pass@k, preference
tuning from each, and a report that compares them.

    python tuning/run_sweetspot_pipeline.py --model tiny --dataset arith --task math \\
        --total_data 3000 --sft_data 2000 --perplexity_thresholds 2.0 1.6 1.4 \\
        --do_sft --do_dpo --do_inference --do_evaluation

Perplexity thresholds and pass@k targets (--pass_at_k_targets 0.3 0.5) may be given together. Each
fork trains on the examples of the budget that SFT left. The reference runs are SFT alone and
preference tuning alone, on the whole budget. Writes runs under TUNING_HOME/models and outputs, and
the report under TUNING_HOME/outputs/reports/{experiment}/. Run again, it resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning import config as site
from tuning.flags import Parser
from tuning.methods import METHODS
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    from tuning.experiments.sweetspot import Wanted
    from tuning.plan import Plan


EXAMPLE = (
    "--model", "tiny", "--dataset", "arith", "--task", "math",
    "--total_data", "3000", "--sft_data", "2000",
)  # fmt: skip
"""What an experiment is of that a preset gets no flags for."""
ALL = ("--do_sft", "--do_dpo", "--do_inference", "--do_evaluation", "--no_references")


def parser(name: str = "run_sweetspot_pipeline.py", description: str | None = __doc__) -> Parser:
    """The flags: the experiment, what to do, and settings of SFT, preference tuning, evaluation."""
    from tuning.autotune.config import add_autotune_switch
    from tuning.experiments.choices import add_settings
    from tuning.launch import add_launch_flags
    from tuning.phases.options import add_before_after_switch, add_data

    made = Parser(prog=name, description=description)
    add_data(made)
    made.add_argument("--total_data", required=True, type=int, help="the whole budget in examples")
    made.add_argument("--sft_data", required=True, type=int, help="examples of it that SFT may use")
    made.add_argument(
        "--pft_method",
        nargs="+",
        default=["dpo"],
        help=f"{', '.join(METHODS)}: one fork per method and sweetspot (default: dpo)",
    )
    _add_what_to_do(made)
    add_launch_flags(made)
    made.add_argument(
        "--no_early_stop", action="store_true", help="do not stop SFT after the last rule fired"
    )
    made.add_argument("--seed", type=int, help="seed of SFT and preference tuning")
    add_autotune_switch(made)
    add_before_after_switch(made)
    add_settings(made, rules=True)
    return made


def _add_what_to_do(made: Parser) -> None:
    group = made.add_argument_group("what to do")
    group.add_argument("--do_sft", action="store_true", help="SFT with sweetspot checkpoints")
    group.add_argument(
        "--do_dpo", action="store_true", help="preference tuning from each sweetspot (--pft_method)"
    )
    group.add_argument("--do_inference", action="store_true", help="sample answers of every model")
    group.add_argument("--do_evaluation", action="store_true", help="score them")
    group.add_argument("--no_references", action="store_true", help="leave out the reference runs")
    group.add_argument("--experiment", help="the name of the experiment and its report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit code.

    Locally: 0 if every stage is done or skipped, 75 if stopped on request, 1 if a stage failed. As
    SLURM jobs: 0 if everything is done or queued.
    """
    return _launched(parser().parse_args(argv))


def preset(
    name: str, description: str | None, example: Sequence[str], argv: Sequence[str] | None
) -> int:
    """A script that is this one with all phases and no reference runs. Where its command line does
    not say what the experiment is of, it is the embedded one, with `example`.
    """
    own = sys.argv[1:] if argv is None else list(argv)
    words = (word.partition("=")[0] for word in own if word.startswith("--"))
    given = {"--" + word[2:].replace("-", "_") for word in words}
    embedded = [] if given & set(EXAMPLE) else [*EXAMPLE, *example]
    return _launched(parser(name, description).parse_args([*ALL, *embedded, *own]))


def _launched(args: argparse.Namespace) -> int:
    from tuning import launch

    options = launch.launch_options(args)
    return launch.launch(plan_of(args), options)


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan of a command line; UserError if it cannot be run."""
    from tuning.experiments.sweetspot import sweetspot_plan

    plan = sweetspot_plan(_wanted(args))
    if args.do_dpo and not args.do_sft and not args.dry_run:
        _require_sft(plan)
    return plan


def _wanted(args: argparse.Namespace) -> Wanted:
    from tuning.autotune.config import autotune_given
    from tuning.experiments.choices import settings_given
    from tuning.experiments.sweetspot import Wanted
    from tuning.launch import samples_on_cuda
    from tuning.phases.options import held_out_given

    settings = settings_given(args)
    if args.no_early_stop:
        settings["sft_values"]["early_stop"] = False
    return Wanted(
        model=args.model,
        dataset=args.dataset,
        task=args.task,
        total_data=args.total_data,
        sft_data=args.sft_data,
        methods=tuple(args.pft_method),
        do_sft=args.do_sft,
        do_dpo=args.do_dpo,
        do_inference=args.do_inference,
        do_evaluation=args.do_evaluation,
        references=not args.no_references,
        experiment=args.experiment,
        seed=args.seed,
        autotune=autotune_given(args, args.autotune),
        held_out=held_out_given(args, args.evaluate_before),
        cuda=samples_on_cuda(args),
        **settings,
    )


def _require_sft(plan: Plan) -> None:
    """Raise UserError unless the SFT run is done: without --do_sft, forks need its checkpoints."""
    from tuning.phases.work import run_of
    from tuning.runs.rundir import RunDirectory, locate
    from tuning.training.render import sft_command

    sft = next(stage for stage in plan.stages if stage.role == "sft")
    directory = RunDirectory(locate(site.models_dir(), sft.name, sft.hash))
    if not directory.done("train"):
        status = directory.status
        why = f" (it failed: {status['reason']})" if status["state"] == "failed" else ""
        raise UserError(
            f"the SFT run '{sft.name}' that the forks start from is not trained{why}; "
            f"add --do_sft, or make it with: {sft_command(run_of(sft))}"
        )


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
