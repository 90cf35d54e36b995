"""From a `ModelConfig` to a model with fresh weights, in the Qwen3 architecture of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuning.engine.config import ModelConfig

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM


def build(
    config: ModelConfig, *, seed: int, eos_token_id: int, pad_token_id: int
) -> Qwen3ForCausalLM:
    """A model on the CPU in fp32; the same seed gives the same weights.

    The global random numbers are left alone. `head_dim` is set, since its default in transformers
    does not follow hidden_size.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    architecture = Qwen3Config(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.block_size,
        num_hidden_layers=config.num_layer,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        attention_dropout=config.dropout,
        tie_word_embeddings=config.tied_lm_head,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(architecture)
    model.generation_config = GenerationConfig(
        eos_token_id=eos_token_id, pad_token_id=pad_token_id, do_sample=True
    )
    return model
