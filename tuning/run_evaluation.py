"""Score answers that run_inference.py, run_sft.py or run_dpo.py sampled; needs no model and no GPU.

    python tuning/run_evaluation.py --run RUN --dataset arith --task math

Takes the flags of run_inference.py. Writes scores.json beside responses.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuning.run_inference import described, evaluate, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    args = parser("run_evaluation.py", __doc__).parse_args(argv)
    args.do_evaluation = args.force = True
    return evaluate(described(args))


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
