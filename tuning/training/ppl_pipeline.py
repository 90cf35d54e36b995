"""SFT that saves a checkpoint whenever perplexity falls to a threshold, preference tuning from each
of them with the examples that are left, and an evaluation of every model.

    python tuning/training/ppl_pipeline.py
    python tuning/training/ppl_pipeline.py --model llama3-8B --dataset gsm8k --task math \\
        --total_data 3000 --sft_data 1500 --perplexity_thresholds 3.0 2.5 2.0

It is run_sweetspot_pipeline.py with all phases and without reference runs, and takes its flags. The
first command is the embedded example. Where there is a cluster, stages become SLURM jobs;
--launcher local runs them here, and --dry_run prints them. ppl_pipeline.ipynb draws what was
measured.
"""

from __future__ import annotations

from collections.abc import Sequence

EXAMPLE = ("--perplexity_thresholds", "2.0", "1.6", "1.4")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit code."""
    from tuning.run_sweetspot_pipeline import preset

    return preset("ppl_pipeline.py", __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
