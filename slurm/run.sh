#!/usr/bin/env bash
# The front door of the budget experiment: how should N training examples be divided between SFT and preference
# tuning? Submits one SLURM job per stage, each depending on the stages that it needs, and a report at the end.
#
# Interactively, question by question; what will run is shown before anything is submitted (--yes: not asked):
#     slurm/run.sh
#
# One point, with flags or with variables; a flag overrides its variable:
#     slurm/run.sh --task math --dataset arith --sft_ratio 0.25 --base_model tiny --pft_method dpo \
#         --do_training --do_sft_first --do_inference --do_evaluation
#     TASK=math DATASET=arith SFT_RATIO=0.25 BASE_MODEL=tiny PFT_METHOD=dpo TRAIN_SIZES=1000 \
#         DO_TRAINING=y DO_SFT_FIRST=y DO_INFERENCE=y DO_EVALUATION=y slurm/run.sh
#
# A grid; runs that several points share are trained once:
#     slurm/run.sh --task math --dataset arith --base_model tiny qwen2-2B --pft_method dpo kto \
#         --sft_ratio 0 0.25 0.5 0.75 1 --train_sizes 1000 4000 --seed 1 2 3 \
#         --do_training --do_sft_first --do_inference --do_evaluation
#
# AUTOTUNE=y, or --autotune, tunes each training in its job before it begins (docs/autotune.md).
# --dry_run prints the stages and submits nothing; --help lists every flag. Stages that are done are skipped, so the
# same command resumes. PYTHON: the interpreter (default: that of the checkout's .venv, else python3).
set -euo pipefail

checkout="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"

python="${PYTHON:-}"
if [[ -z "$python" ]]; then
    python="python3"
    if [[ -x "$checkout/.venv/bin/python" ]]; then
        python="$checkout/.venv/bin/python"
    fi
fi

export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -P -m tuning.cli submit --prompt "$@"
