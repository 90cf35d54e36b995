"""SFT that saves a checkpoint whenever pass@k rises to a target, preference tuning from each of
them with the examples that are left, and an evaluation of every model.

    python tuning/training/passk_pipeline.py
    python tuning/training/passk_pipeline.py --model llama3-8B --dataset gsm8k --task math \\
        --total_data 3000 --sft_data 1500 --pass_at_k_targets 0.3 0.4 0.5

It is run_sweetspot_pipeline.py with all phases and without reference runs, and takes its flags. The
first command is the embedded example. Where there is a cluster, stages become SLURM jobs;
--launcher local runs them here, and --dry_run prints them. passk_pipeline.ipynb draws what was
measured.
"""

from __future__ import annotations

from collections.abc import Sequence

EXAMPLE = ("--pass_at_k_targets", "0.1", "0.2", "--pass_at_k_every", "5")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit code."""
    from tuning.run_sweetspot_pipeline import preset

    return preset("passk_pipeline.py", __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
