"""A model in 4 bits under an adapter: by the setting of the project where there is one, else by the
libraries that it would use.
"""

from __future__ import annotations

import math
import time
from dataclasses import fields
from typing import Any

from benchmarks.gpu_checks.rows import FAILED, OK
from benchmarks.gpu_checks.site import MODEL, Context

SETTING = "load_in_4bit"
STEPS = 5


def run(context: Context) -> None:
    """One row."""
    from tuning.weights.config import ModelLoadConfig

    if SETTING in {field.name for field in fields(ModelLoadConfig)}:
        from benchmarks.gpu_checks.training import _sft_flags, _trained

        _trained(context, "SFT in 4 bits", "run_sft.py", *_sft_flags(context), f"--{SETTING}")
    else:
        _by_the_libraries(context)


def _by_the_libraries(context: Context) -> None:
    """transformers and bitsandbytes load the model, peft adds an adapter; some steps of AdamW."""
    import torch
    from bitsandbytes.nn import Linear4bit

    began = time.monotonic()
    adapted = _adapted(context)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.arange(2, 66, device=context.device)[None].repeat(4, 1)
    losses = []
    for _ in range(STEPS):
        with torch.autocast(context.device, dtype=torch.bfloat16):
            loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    packed = sum(isinstance(module, Linear4bit) for module in adapted.modules())
    fine = packed > 0 and math.isfinite(losses[-1]) and losses[-1] < losses[0]
    context.say(
        "LoRA step in 4 bits",
        OK if fine else FAILED,
        f"no setting {SETTING} in this version, so by transformers, bitsandbytes and peft alone: "
        f"{packed} layers in 4 bits, loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps",
        time.monotonic() - began,
        layers=packed,
        losses=losses,
    )


def _adapted(context: Context) -> Any:
    """The model in 4 bits, and an adapter over it."""
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from tuning.weights.config import LoraConfig
    from tuning.weights.loading import peft_config

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    network = AutoModelForCausalLM.from_pretrained(
        context.home / "models" / MODEL / "model",
        quantization_config=settings,
        device_map={"": context.device},
    )
    prepared = prepare_model_for_kbit_training(
        network, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    return get_peft_model(prepared, peft_config(LoraConfig(lora_r=8, lora_alpha=8)))
