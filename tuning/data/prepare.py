"""A dataset of the hub, or of published files, that collections.yaml describes (loader: published).

    python tuning/data/prepare.py NAME             from the sources that the entry names
    python tuning/data/prepare.py NAME --force     reads them again

Writes TUNING_HOME/data/datasets/NAME/; see tuning/data/preparation.py.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pools; returns the exit code."""
    from tuning.data.command import make_published

    return make_published(__doc__, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
