"""GRPO samples in the precision that it trains in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer

from tuning.training.grpo_training import _Trainer
from tuning.training.trainers import in_float32
from tuning.weights.config import LoraConfig
from tuning.weights.loading import peft_config


@pytest.mark.parametrize("full_modules", [(), ("embed_tokens", "lm_head")], ids=["lora", "full"])
def test_a_bfloat16_model_with_float32_modules_answers(monkeypatch, full_modules) -> None:
    """As on CUDA; autocast of a CPU stands for that of a GPU."""
    shape = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    lora = LoraConfig(lora_r=2, lora_alpha=2, full_modules=full_modules)
    network = get_peft_model(Qwen2ForCausalLM(shape).to(torch.bfloat16), peft_config(lora))
    in_float32(network)

    def generated(self, ids):
        return network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2
        )

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generated)
    trainer = _Trainer.__new__(_Trainer)
    trainer.accelerator = SimpleNamespace(
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        unwrap_model=lambda model: model,
    )
    trainer.args = SimpleNamespace(seed=1, device="cpu", temperature=1.0)
    trainer.state, trainer.model_wrapped = SimpleNamespace(global_step=0), network
    trainer.is_fsdp_enabled = False
    assert trainer._generate_single_turn(torch.full((2, 3), 5)).shape == (2, 5)
    assert "generate" not in vars(network), "it is left as it was"
