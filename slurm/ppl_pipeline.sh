#!/usr/bin/env bash
#SBATCH --job-name=ppl_pipeline
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --nodes=1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#
# SFT to thresholds of perplexity, a fork from each checkpoint with the examples that are left, and evaluations, in one
# allocation; the stages run in order on that node:
#
#   sbatch --gres=gpu:1 slurm/ppl_pipeline.sh --model llama3-8B --dataset gsm8k --task math \
#       --total_data 3000 --sft_data 1500 --perplexity_thresholds 3.0 2.5 2.0
#
# For one job per stage, with forks that start while SFT still trains: python tuning/training/ppl_pipeline.py with the
# same flags, on the login node.
set -euo pipefail
exec bash "${TUNING_CODE:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/stage.sbatch" \
    tuning/training/ppl_pipeline.py --launcher local "$@"
