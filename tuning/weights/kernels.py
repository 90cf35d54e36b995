"""Which kernels of torch compute attention.

The backward pass of cuDNN's attention, which torch prefers on Hopper and later GPUs, gives
gradients that are no numbers for some masks and lengths (pytorch/pytorch#196678, torch 2.11 to
2.13; huggingface/trl#7181 saw it in DPO and KTO). FlashAttention 2 and the memory-efficient kernel
serve in its place; for gpt-0.25b on an H200 they took 2% longer a step (2026-11-26).
"""

from __future__ import annotations


def leave_out_cudnn_attention() -> None:
    """For the rest of this process; nothing without a GPU."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
