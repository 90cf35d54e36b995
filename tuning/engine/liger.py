"""Liger's fused kernels. CUDA only: elsewhere they can be imported, but not run."""

from __future__ import annotations

from typing import Any

from tuning.runs.errors import UserError


def check(asked: bool) -> None:
    """Raise UserError if the kernels are asked for and cannot run here."""
    if not asked:
        return
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        raise UserError("--use_liger_kernels needs an NVIDIA GPU; there is none here. Leave it out")
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "--use_liger_kernels needs liger-kernel; install it with: "
            "pip install -r requirements-gpu.txt"
        )


def apply(model: Any) -> None:
    """Replace the norms, rotary embeddings and MLPs of a model by fused ones.

    The loss is not replaced: the engine computes logits only at tokens with a loss, and has other
    losses. Raises UserError for a kind of model without Liger kernels.
    """
    from liger_kernel.transformers.monkey_patch import (
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise UserError(f"Liger has no kernels for a '{kind}' model; it has for: {known}")
    _apply_liger_kernel_to_instance(
        model=model, fused_linear_cross_entropy=False, cross_entropy=False
    )
