"""What a model is made of and how it is pre-trained; the defaults are the recipe of the tiny model.

Fields marked `hashed: False` change how a run is carried out, not what comes out of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tuning.runs.errors import UserError, choose

PRECISIONS = ("fp32", "bf16")
CORPORA = ("arith",)
SMALLEST_VOCABULARY = 256 + 5
"""Every byte, padding, the end of a turn, and three roles."""
_SIZES = (
    "block_size", "vocab_size", "num_layer", "num_attention_heads", "num_key_value_heads",
    "hidden_size", "intermediate_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only transformer (Qwen3 architecture)."""

    block_size: int = 128
    """Longest sequence in tokens that the model is trained on."""
    vocab_size: int = 512
    """Rows of the embedding; at least the size of the tokenizer."""
    num_layer: int = 3
    """Transformer blocks."""
    num_attention_heads: int = 4
    """Query heads; hidden_size must be a multiple."""
    num_key_value_heads: int = 4
    """Key and value heads (grouped-query attention); must divide num_attention_heads."""
    hidden_size: int = 96
    """Width of the residual stream."""
    intermediate_size: int = 288
    """Width of the gated MLP."""
    dropout: float = 0.0
    """Dropout probability on attention weights."""
    tied_lm_head: bool = True
    """Whether the output projection shares the weights of the embedding."""

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} divided by num_attention_heads "
                f"{self.num_attention_heads} must be an even number (rotary embeddings)"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads {self.num_key_value_heads} must divide "
                f"num_attention_heads {self.num_attention_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The text, the budget and the optimizer of a pre-training run."""

    corpus: str = "arith"
    """Name of the text to train on."""
    corpus_seed: int = 0
    """Seed of a synthetic corpus."""
    tokenizer_vocab_size: int = 512
    """Entries of the tokenizer that is trained on the corpus, special tokens included."""
    total_steps: int = 600
    """Optimizer steps."""
    batch_size: int = 16
    """Effective batch size: sequences of block_size tokens in one optimizer step."""
    micro_batch_size: int | None = field(default=None, metadata={"hashed": False})
    """Sequences in one forward pass; None takes the whole batch. Changes memory, not the result."""
    learning_rate: float = 6e-3
    """Highest learning rate, reached at the end of the warmup."""
    min_learning_rate: float = 1e-4
    """Learning rate at the last step of the cosine."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly to learning_rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices; vectors (norms, biases) have none."""
    adam_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: float = 0.95
    """Decay of AdamW's second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    seed: int = 0
    """Seed of the initial weights, the order of the batches and dropout."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast; weights and optimizer stay fp32)."""
    save_steps: int = field(default=100, metadata={"hashed": False})
    """A checkpoint every so many steps; what a killed run loses at most."""
    log_steps: int = field(default=10, metadata={"hashed": False})
    """A line of metrics every so many steps."""

    def __post_init__(self) -> None:
        choose("corpus", self.corpus, CORPORA)
        choose("precision", self.precision, PRECISIONS)
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above zero")
        for name in ("min_learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be zero or more")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("seed", "corpus_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise UserError(f"{name} is {getattr(self, name)}; it must be in [0, 2**32)")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is {self.warmup_steps}; it must be zero or more")
        if self.tokenizer_vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"tokenizer_vocab_size is {self.tokenizer_vocab_size}; bytes and special tokens "
                f"alone are {SMALLEST_VOCABULARY}"
            )
        for name in ("total_steps", "batch_size", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(
                f"micro_batch_size is {self.micro_batch_size}; it must be at least 1, or None for "
                f"the whole batch"
            )
