#!/usr/bin/env bash
# Makes the published datasets, SFT and preference data of GSM8K and TuluIF, under TUNING_HOME/data/datasets. Run it where
# the Hugging Face hub can be reached; jobs then read plain files. A source that was read is not read again (--force).
#
#     slurm/data_processing.sh [--force]
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
for dataset in gsm8k tuluif; do
    for kind in sft pref; do
        "$python" -P "$checkout/tuning/data/${dataset}_$kind.py" "$@"
    done
done
