"""Answers to the prompts of IFEval: run_inference.py with --task instruction --dataset tuluif.

    python tuning/inference/ifeval_inference.py --model llama3-8B
    python tuning/inference/ifeval_inference.py --run RUN --sweetspot ppl-3.0 --do_evaluation

Every flag of run_inference.py can be given as well; ifeval_evaluate.py scores the answers later.
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = ("--task", "instruction", "--dataset", "tuluif", "--do_inference")


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the answers; returns the exit code."""
    from tuning.run_inference import preset

    return preset("ifeval_inference.py", __doc__, WORDS, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
