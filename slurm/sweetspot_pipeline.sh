#!/usr/bin/env bash
#SBATCH --job-name=sweetspot_pipeline
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --nodes=1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#
# A whole sweetspot experiment in one allocation; its stages run in order on that node:
#
#   sbatch --gres=gpu:1 slurm/sweetspot_pipeline.sh --model llama3-8B --dataset arith --task math \
#       --total_data 10000 --sft_data 5000 --perplexity_thresholds 3.0 2.5 2.0 --do_sft --do_dpo
#
# For one job per stage, with forks that start while SFT still trains: `tuning submit` with the same flags.
set -euo pipefail
exec bash "${TUNING_CODE:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/stage.sbatch" \
    tuning/run_sweetspot_pipeline.py --launcher local "$@"
