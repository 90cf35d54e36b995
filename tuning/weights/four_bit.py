"""A base model that is held in 4 bits (NF4 with double quantization; QLoRA, Dettmers et al. 2023,
section 3): what asks transformers for it, and its package, which only GPUs' requirements have.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tuning.runs import provenance
from tuning.runs.errors import UserError

if TYPE_CHECKING:
    import torch

PACKAGE = "bitsandbytes"
VERSION = "0.50.2"


def require() -> None:
    """Raise UserError where a base cannot be held in 4 bits; imports nothing heavy."""
    if provenance.version(PACKAGE) is None:
        raise UserError(
            f"load_in_4bit needs the package {PACKAGE}, which is not installed in {sys.prefix}: "
            f"pip install {PACKAGE}=={VERSION} (requirements-gpu.txt has it), or leave out "
            "--load_in_4bit."
        )


def how(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The arguments of from_pretrained() for a base in 4 bits on a device, computed in `dtype`."""
    require()
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "device_map": {"": device},
    }
