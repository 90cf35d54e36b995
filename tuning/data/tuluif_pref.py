"""Preference pairs of TuluIF, instructions that a program can check.

    python tuning/data/tuluif_pref.py                       from the Hugging Face hub
    python tuning/data/tuluif_pref.py --source pref.parquet     from a file of the same columns

Writes TUNING_HOME/data/datasets/tuluif/; see tuning/data/preparation.py.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pools; returns the exit code."""
    from tuning.data.command import make

    return make("tuluif", "preference", __doc__, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
