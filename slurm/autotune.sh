#!/usr/bin/env bash
#SBATCH --job-name=autotune
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#
# Tunes a training on a node of this kind, without training; what is found is kept for every later run with --autotune:
#
#   sbatch --gres=gpu:1 slurm/autotune.sh --for sft --model llama3-8B --dataset arith --task math --train_size 1000
#   sbatch --gres=gpu:8 slurm/autotune.sh --for pretrain --preset gpt-1b --use_mock_data --num_gpus 8
#
# See docs/autotune.md.
set -euo pipefail
exec bash "${TUNING_CODE:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/stage.sbatch" tuning/run_autotune.py "$@"
