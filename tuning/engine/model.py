"""The model of a training: fresh weights in the shape of a `ModelConfig` (Qwen3, Qwen3MoE), or any
causal language model that transformers can load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuning.engine.config import ModelConfig

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def architecture(config: ModelConfig, *, eos_token_id: int, pad_token_id: int) -> PretrainedConfig:
    """The transformers config of a shape.

    `head_dim` is set, since its default in transformers does not follow hidden_size. A token that
    ends documents and fills batches alike is not named as padding: its embedding would begin at
    zero, and the gradient of a first token that is zero grows with each block, to infinity in a
    deep model.
    """
    from transformers import Qwen3Config, Qwen3MoeConfig

    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.num_layer,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied_lm_head,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": None if pad_token_id == eos_token_id else pad_token_id,
    }
    if not config.use_moe:
        return Qwen3Config(**common)
    return Qwen3MoeConfig(
        **common,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        moe_intermediate_size=config.moe_intermediate_size,
        norm_topk_prob=True,
    )


def build(
    config: ModelConfig, *, seed: int, eos_token_id: int, pad_token_id: int
) -> PreTrainedModel:
    """A model on the CPU in fp32; the same seed gives the same weights.

    The global random state is left unchanged.
    """
    import torch

    shape = architecture(config, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = skeleton(shape, torch.float32)
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        eos_token_id=eos_token_id, pad_token_id=pad_token_id, do_sample=True
    )
    return model


def skeleton(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a transformers config; under `torch.device("meta")` it takes no memory."""
    from transformers import AutoModelForCausalLM

    found: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return found
