"""pass@k of the k best of a beam search, with transformers; see k_beams.py.

    python tuning/inference/k_beams_hf.py --model tiny --dataset arith --task math \\
        --n_samples 4 --k_values 1 4
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = ("--decoding", "beam", "--backend", "hf", "--do_inference", "--do_evaluation")


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the answers; returns the exit code."""
    from tuning.run_inference import preset

    return preset("k_beams_hf.py", __doc__, WORDS, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
