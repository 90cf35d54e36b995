"""Losses of one's own that watch a training, or break it."""

import os
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy


def watched(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; appends the process to the file TUNING_TEST_WATCHED: a line a forward pass."""
    with Path(os.environ["TUNING_TEST_WATCHED"]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return cross_entropy(logits, targets, reduction="none")


def no_number(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Not a number."""
    return cross_entropy(logits, targets, reduction="none") * float("nan")


def too_large(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """More than any machine has, asked of PyTorch's allocator."""
    return cross_entropy(logits, targets, reduction="none") + torch.empty(1 << 50).sum()
