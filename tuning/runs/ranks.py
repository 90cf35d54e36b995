"""Which of the processes that torchrun started this one is. The only reader of torchrun's
variables; what needs torch is in tuning/engine/ranks.py.
"""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number among those of its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process is alone, or rank 0: the one that writes and reports."""
    return rank() == 0


def under_torchrun() -> bool:
    """Whether torchrun started this process; it passes neither signals nor exit codes on."""
    return "TORCHELASTIC_RUN_ID" in os.environ
