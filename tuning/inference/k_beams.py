"""pass@k of the k best of a beam search, with vLLM: run_inference.py with --decoding beam.

    python tuning/inference/k_beams.py --model llama3-8B --dataset gsm8k --task math \\
        --n_samples 8 --k_values 1 8

--n_samples is the width of the search. pass@k is the share of prompts with a right answer among the
k best beams. Answers and scores lie beside those of other samplings, under a name of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = ("--decoding", "beam", "--backend", "vllm", "--do_inference", "--do_evaluation")


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the answers; returns the exit code."""
    from tuning.run_inference import preset

    return preset("k_beams.py", __doc__, WORDS, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
