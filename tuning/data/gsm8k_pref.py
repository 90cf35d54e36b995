"""Preference pairs of GSM8K: a correct and an incorrect solution of a problem.

    python tuning/data/gsm8k_pref.py                       from the Hugging Face hub
    python tuning/data/gsm8k_pref.py --source solutions.jsonl     from a file of the same columns

Writes TUNING_HOME/data/datasets/gsm8k/; see tuning/data/preparation.py.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pools; returns the exit code."""
    from tuning.data.command import make

    return make("gsm8k", "preference", __doc__, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
