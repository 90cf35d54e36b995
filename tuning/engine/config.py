"""The settings of a training on the engine, one dataclass a concern, and what they may be.

The defaults of the model and of pre-training are those of a mid-sized GPT on 2048-token GPUs'
worth of data; presets.yaml has recipes. Fields marked `hashed: False` change how a run is carried
out, not what comes out of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tuning.runs.errors import UserError, choose

CORPORA = ("arith",)
SMALLEST_VOCABULARY = 256 + 5
"""Every byte, padding, the end of a turn, and three roles."""
_FREE: dict[str, Any] = {"hashed": False}
_SIZES = (
    "block_size", "vocab_size", "num_layer", "num_attention_heads", "num_key_value_heads",
    "hidden_size", "intermediate_size",
)  # fmt: skip
_EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only transformer (Qwen3, or Qwen3MoE with experts)."""

    block_size: int = 4096
    """Longest sequence in tokens; with --data_path of documents, the length of a block."""
    vocab_size: int = 50304
    """Rows of the embedding; at least the size of the tokenizer."""
    num_layer: int = 32
    """Transformer blocks."""
    num_attention_heads: int = 128
    """Query heads; hidden_size must be a multiple."""
    num_key_value_heads: int = 8
    """Key and value heads (grouped-query attention); must divide num_attention_heads."""
    hidden_size: int = 1024
    """Width of the residual stream; the width of a head is hidden_size / num_attention_heads."""
    intermediate_size: int = 4096
    """Width of the gated MLP."""
    dropout: float = 0.0
    """Dropout probability on attention weights."""
    tied_lm_head: bool = True
    """Whether the output projection shares the weights of the embedding."""
    use_moe: bool = False
    """A mixture of experts in place of every MLP."""
    num_experts: int = 128
    """Experts a layer (use_moe)."""
    num_experts_per_tok: int = 8
    """Experts that work on a token (use_moe)."""
    moe_intermediate_size: int = 256
    """Width of an expert (use_moe)."""

    def __post_init__(self) -> None:
        for name in (*_SIZES, *(_EXPERT_SIZES if self.use_moe else ())):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")
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
        if self.use_moe and self.num_experts_per_tok > self.num_experts:
            raise UserError(
                f"num_experts_per_tok {self.num_experts_per_tok} is above num_experts "
                f"{self.num_experts}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    corpus: str | None = None
    """A text that is made here by name: arith."""
    corpus_seed: int = 0
    """Seed of a corpus that is made here."""
    tokenizer_vocab_size: int = 512
    """Entries of the tokenizer that is trained on such a corpus, special tokens included."""
    use_mock_data: bool = False
    """Random tokens, for trying a set-up and for measuring speed."""
    mock_data_num_samples: int = 1280
    """Sequences of random tokens."""
    data_path: str | None = None
    """Text (.txt, or .jsonl with "text"), documents of token ids (.jsonl with "input_ids"), or
    fine-tuning rows (.jsonl with "input_ids" and "labels")."""
    tokenizer: str | None = None
    """Tokenizer of a text: hub id or folder (default: that of --model_name_or_path)."""
    on_long: Literal["refuse", "truncate"] = "refuse"
    """What becomes of a row that is longer than --max_tokens_per_gpu."""
    validation_data_path: str | None = None
    """Held-out data of the same kind."""
    validation_split: float = 0.0
    """Share of the data that is held out for the validation loss."""

    def __post_init__(self) -> None:
        if self.corpus is not None:
            choose("corpus", self.corpus, CORPORA)
        _require(self, "validation_split", 0 <= self.validation_split < 1, "in [0, 1)")
        _require(self, "mock_data_num_samples", self.mock_data_num_samples >= 1, "at least 1")
        _require(self, "corpus_seed", 0 <= self.corpus_seed < 2**32, "in [0, 2**32)")
        if self.tokenizer_vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"tokenizer_vocab_size is {self.tokenizer_vocab_size}; bytes and special tokens "
                f"alone are {SMALLEST_VOCABULARY}"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The batch, the length of training, the optimizer and the loss."""

    total_batch_size: int = 524288
    """Tokens of an optimizer step over all ranks, where batches have a fixed length."""
    batch_size: int = 8
    """Sequences of one forward pass a rank (micro-batch), where batches have a fixed length; with
    --max_tokens_per_gpu, samples of an optimizer step over all ranks."""
    seq_len: int | None = None
    """Tokens of a sequence (default: block_size)."""
    max_tokens_per_gpu: int | None = None
    """Most tokens of one forward pass a rank: samples are packed up to it, their cost balanced."""
    training_mode: Literal["epoch", "step", "token", "infinite"] = "epoch"
    """What ends training: max_epochs, max_steps, max_tokens, or nothing but a signal."""
    max_epochs: int = 1
    """Passes over the data (mode epoch); each is one permutation."""
    max_steps: int | None = None
    """Optimizer steps; given alone, it means --training_mode step."""
    max_tokens: int | None = None
    """Tokens to train on; given alone, it means --training_mode token."""
    max_lr: float = 4e-3
    """Highest learning rate, reached at the end of the warmup."""
    min_lr: float | None = None
    """Learning rate at the end (default: 3e-5, or a tenth of max_lr where that is less)."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_steps: int = 1000
    """Steps over which the learning rate rises linearly to max_lr."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices; vectors (norms, biases) have none."""
    adam_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: float = 0.95
    """Decay of AdamW's second moment."""
    adam_epsilon: float = 1e-8
    """Added to the root of AdamW's second moment."""
    grad_clip_value: float = 1.0
    """Gradients are scaled down to this global norm."""
    seed: int = 0
    """Seed of the initial weights, the order of the samples and dropout."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """The loss of a token."""
    focal_alpha: float = 1.0
    """Factor of the focal loss."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss: how little a token counts that is predicted well."""
    router_aux_loss_coef: float = 0.001
    """Weight of the loss that balances the experts of a mixture."""
    osft: bool = False
    """Orthogonal subspace fine-tuning: the strongest directions of each matrix stay as they are."""
    osft_unfreeze_rank_ratio: float = 0.25
    """Share of the directions of each matrix that is trained, from 0.0 to 1.0 (osft)."""
    osft_target_patterns: tuple[str, ...] = ()
    """Names of the linear layers (default: those of attention and MLP) (osft)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the computation; auto: bf16 on CUDA, fp32 elsewhere."""
    train_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights and the optimizer while training."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in the model that is written."""

    def __post_init__(self) -> None:
        for name in ("max_lr", "grad_clip_value", "adam_epsilon"):
            _require(self, name, 0 < getattr(self, name) < math.inf, "above zero")
        for name in ("weight_decay", "focal_alpha", "focal_gamma", "router_aux_loss_coef"):
            _require(self, name, 0 <= getattr(self, name) < math.inf, "zero or more")
        for name in ("adam_beta1", "adam_beta2"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require(self, "seed", 0 <= self.seed < 2**32, "in [0, 2**32)")
        _require(self, "warmup_steps", self.warmup_steps >= 0, "zero or more")
        for name in ("total_batch_size", "batch_size", "max_epochs"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("seq_len", "max_tokens_per_gpu", "max_steps", "max_tokens"):
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1")
        ratio = self.osft_unfreeze_rank_ratio
        _require(self, "osft_unfreeze_rank_ratio", 0 <= ratio <= 1, "between 0.0 and 1.0")
        if self.min_lr is not None and not 0 <= self.min_lr <= self.max_lr:
            raise UserError(f"min_lr is {self.min_lr}; it must be between 0 and max_lr")
        self._check_mode()

    def _check_mode(self) -> None:
        if self.training_mode == "infinite" and self.lr_scheduler != "constant":
            raise UserError(
                f"lr_scheduler {self.lr_scheduler} needs an end; with --training_mode infinite use "
                f"--lr_scheduler constant"
            )
        for mode, name in (("step", "max_steps"), ("token", "max_tokens")):
            if self.training_mode == mode and getattr(self, name) is None:
                raise UserError(f"--training_mode {mode} needs --{name}")

    @property
    def mode(self) -> str:
        """What ends training, as the settings together say."""
        if self.training_mode == "epoch" and self.max_steps is not None:
            return "step"
        if self.training_mode == "epoch" and self.max_tokens is not None:
            return "token"
        return self.training_mode

    @property
    def last_lr(self) -> float:
        """Learning rate at the end."""
        return min(3e-5, self.max_lr / 10) if self.min_lr is None else self.min_lr


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed, and on which processes; changes nothing but rounding."""

    parallel: Literal["ddp", "zero1", "fsdp2"] = field(default="fsdp2", metadata=_FREE)
    """Among several processes: whole replicas (ddp), with shards of the optimizer (zero1), or
    shards of everything (fsdp2)."""
    sep_size: int = field(default=1, metadata=_FREE)
    """Processes that share the sequences, and the experts, of one replica."""
    gradient_checkpointing: bool = field(default=False, metadata=_FREE)
    """Compute activations again in the backward pass, for less memory."""
    use_compile: bool = field(default=False, metadata=_FREE)
    """torch.compile for every transformer block."""
    use_liger_kernels: bool = field(default=False, metadata=_FREE)
    """Liger's fused kernels (CUDA)."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(ComputeConfig):
    """How a training is carried out: how it is computed, and what it leaves on the way."""

    save_every_steps: int = field(default=5000, metadata=_FREE)
    """A checkpoint to resume from every so many steps; what a killed run loses at most."""
    keep_checkpoints: int = field(default=2, metadata=_FREE)
    """How many of them are kept."""
    min_samples_per_checkpoint: int | None = field(default=None, metadata=_FREE)
    """Write the model itself whenever so many samples more were seen."""
    validation_every_steps: int | None = field(default=None, metadata=_FREE)
    """Measure the validation loss so often (default: at the end)."""
    save_best_val_loss: bool = field(default=False, metadata=_FREE)
    """Keep the model with the lowest validation loss."""
    log_steps: int = field(default=1, metadata=_FREE)
    """A line of metrics every so many steps."""
    log_dir: str | None = field(default=None, metadata=_FREE)
    """Where log.txt and profiles go, a folder a run (default: TUNING_HOME/outputs/logs)."""
    use_profiler: bool = field(default=False, metadata=_FREE)
    """Record a trace of some steps."""
    steps_to_profile: tuple[int, ...] = field(default=(15, 20), metadata=_FREE)
    """The first and the last step of the trace."""
    debug: bool = field(default=False, metadata=_FREE)
    """Write no checkpoints."""

    def __post_init__(self) -> None:
        for name in ("sep_size", "save_every_steps", "keep_checkpoints", "log_steps"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("min_samples_per_checkpoint", "validation_every_steps"):
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1")
        steps = self.steps_to_profile
        fits = len(steps) == 2 and 0 < steps[0] <= steps[1]
        _require(self, "steps_to_profile", fits, "two step numbers, the first one first")


def _require(config: Any, name: str, holds: bool, what: str) -> None:
    """Raise UserError for a setting unless `holds`."""
    if not holds:
        raise UserError(f"{name} is {getattr(config, name)}; it must be {what}")
