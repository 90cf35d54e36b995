#!/usr/bin/env bash
#SBATCH --job-name=pretrain
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#
# Pre-training, on one node or on several:
#
#   sbatch slurm/pretrain.sh --model tiny
#   sbatch --gres=gpu:1 slurm/pretrain.sh --preset gpt-0.25b --data_path text.jsonl --tokenizer FOLDER
#   TUNING_PROCESSES=8 sbatch --nodes=2 --gres=gpu:8 slurm/pretrain.sh --preset gpt-7b --data_path ...
#   SEP_SIZE=2 TUNING_PROCESSES=8 sbatch --gres=gpu:8 slurm/pretrain.sh --preset gpt-0.3b-a0.17b ...
#
# Several nodes, or TUNING_PROCESSES > 1 processes per node, run under torchrun. See docs/engine.md.
set -euo pipefail
exec bash "${TUNING_CODE:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/stage.sbatch" tuning/run_pretrain.py "$@"
