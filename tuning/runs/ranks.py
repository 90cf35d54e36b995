"""Rank and world size, from the environment variables of torchrun and of accelerate launch, which
only this module reads.
Collectives, which need torch, are in tuning/engine/ranks.py.
"""

from __future__ import annotations

import os


def world_size() -> int:
    """Number of processes that train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Rank of this process among all; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Rank of this process on its node; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def nodes() -> int:
    """Number of nodes, with as many processes each; 1 without torchrun."""
    return max(1, world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))


def is_first() -> bool:
    """Whether this is rank 0, which writes and logs; true without torchrun."""
    return rank() == 0


def under_torchrun() -> bool:
    """Whether torchrun started this process; it forwards neither signals nor exit codes."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def accelerate_shards() -> bool:
    """Whether `accelerate launch` started this process with a config file of FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")
