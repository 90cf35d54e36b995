"""The settings of training, one dataclass a concern, and the values that they may have.

`ComputeConfig`, `LossConfig` and `OSFTConfig` are shared by pre-training and fine-tuning;
`LoopConfig` is all that the training loop reads. Defaults: a mid-sized GPT, 524,288 tokens per
optimizer step; presets.yaml has recipes.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tuning.runs.errors import UserError, choose, nearest
from tuning.runs.manifest import KEPT
from tuning.settings import require, setting

CORPORA = ("arith",)
SMALLEST_VOCABULARY = 256 + 5
"""Every byte, padding, the end of a turn, and three roles."""
LOSSES = ("cross_entropy", "focal")
"""The losses that have names; any other is a function of one's own."""
_OWN_LOSS = re.compile(r"[A-Za-z_][\w.]*[:.][A-Za-z_]\w*")
_SIZES = (
    *("block_size", "vocab_size", "num_layer", "num_attention_heads", "num_key_value_heads"),
    *("hidden_size", "intermediate_size"),
)
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
    """Experts per layer (use_moe)."""
    num_experts_per_tok: int = 8
    """Experts activated per token (use_moe)."""
    moe_intermediate_size: int = 256
    """Width of an expert (use_moe)."""

    def __post_init__(self) -> None:
        for name in (*_SIZES, *(_EXPERT_SIZES if self.use_moe else ())):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")
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
    """The data to train on."""

    corpus: str | None = None
    """A generated text, by name: arith."""
    corpus_seed: int = 0
    """Seed of the generated text."""
    tokenizer_vocab_size: int = 512
    """Entries of the tokenizer that is trained on the generated text, special tokens included."""
    use_mock_data: bool = False
    """Random tokens, to try a set-up or to measure speed."""
    mock_data_num_samples: int = 1280
    """Sequences of random tokens."""
    data_path: str | None = setting(None, hashed=False)
    """Text (.txt, or .jsonl with "text"), documents of token ids (.jsonl with "input_ids"), or
    fine-tuning rows (.jsonl with "input_ids" and "labels")."""
    tokenizer: str | None = None
    """Tokenizer of a text: hub id or folder (default: that of --model_name_or_path)."""
    on_long: Literal["refuse", "truncate"] = "refuse"
    """What to do with a row that is longer than --max_tokens_per_gpu."""
    validation_data_path: str | None = setting(None, hashed=False)
    """Held-out data of the same kind."""
    validation_split: float = setting(0.0, before=0.0)
    """Share of the data that is held out for the validation loss."""

    def __post_init__(self) -> None:
        if self.corpus is not None:
            choose("corpus", self.corpus, CORPORA)
        require(self, "validation_split", 0 <= self.validation_split < 1, "in [0, 1)")
        require(self, "mock_data_num_samples", self.mock_data_num_samples >= 1, "at least 1")
        require(self, "corpus_seed", 0 <= self.corpus_seed < 2**32, "in [0, 2**32)")
        if self.tokenizer_vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"tokenizer_vocab_size is {self.tokenizer_vocab_size}; bytes and special tokens "
                f"alone are {SMALLEST_VOCABULARY}"
            )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How an optimizer step is computed, and on which processes. Changes memory and speed; the
    result only by rounding. A trainer refuses the settings that it does not use.
    """

    micro_batch_size: int | None = setting(None, hashed=False)
    """Sequences or examples in one forward pass of a rank (default: 8 in pre-training, 4 with
    TRL)."""
    max_tokens_per_gpu: int | None = setting(None, hashed=False)
    """Maximum tokens per forward pass and rank: samples are packed up to this limit, instead of a
    fixed micro-batch size (default: off in pre-training, 8192 in SFT with the engine)."""
    gradient_checkpointing: bool | None = setting(None, hashed=False)
    """Recompute activations in the backward pass, for less memory (default: with TRL on CUDA)."""
    parallel: Literal["ddp", "zero1", "fsdp2", "hsdp"] = setting("fsdp2", hashed=False)
    """Parallelism across ranks: full replicas (ddp), sharded optimizer states (zero1), all sharded
    over all ranks (fsdp2), or over those of a node with replicas across nodes (hsdp). TRL takes ddp
    (its default) and fsdp2."""
    sep_size: int = setting(1, hashed=False)
    """Sequence-parallel group size: ranks that share each sequence (and, with MoE, the experts)."""
    use_compile: bool = setting(False, hashed=False)
    """torch.compile every transformer block."""
    use_liger_kernels: bool = setting(False, hashed=False)
    """Liger's fused kernels (CUDA)."""

    def __post_init__(self) -> None:
        require(self, "sep_size", self.sep_size >= 1, "at least 1")
        alone = self.sep_size == 1 or self.parallel != "hsdp"
        require(self, "sep_size", alone, "1 with parallel hsdp; fsdp2 takes more")
        for name in ("micro_batch_size", "max_tokens_per_gpu"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")


def _if_focal(part: Any, run: Any) -> bool:
    return bool(part.loss == "focal")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The per-token loss; a step averages it over all tokens that have a label."""

    loss: str = "cross_entropy"
    """cross_entropy, focal, or a function of your own, package.module:function, with the signature
    of LossFunction in tuning/engine/losses.py. The run's hash includes its name, not its code."""
    focal_alpha: float = setting(1.0, hashed=_if_focal)
    """Factor of the focal loss (focal)."""
    focal_gamma: float = setting(2.0, hashed=_if_focal)
    """Exponent of the focal loss: higher values down-weight well-predicted tokens more (focal)."""

    def __post_init__(self) -> None:
        for name in ("focal_alpha", "focal_gamma"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or more")
        if self.loss not in LOSSES and not _OWN_LOSS.fullmatch(self.loss):
            raise UserError(
                f"unknown loss '{self.loss}'; use cross_entropy, focal, or a function of your own "
                f"as package.module:function.{nearest(self.loss, LOSSES)}"
            )

    def own_function(self) -> Callable[..., Any] | None:
        """The function that `loss` names by its module, imported; None for a loss of LOSSES.

        Raises UserError if it cannot be imported.
        """
        if self.loss in LOSSES:
            return None
        module, name = _module_and_name(self.loss)
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise UserError(
                f"loss {self.loss} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not callable(found):
            raise UserError(f"loss {self.loss} is a {type(found).__name__}; it must be a function")
        return found  # type: ignore[no-any-return]


def loss_name(loss: str) -> str:
    """A loss in its one spelling: of LOSSES, or `package.module:function`.

    Raises UserError if the module does not exist; it is not imported, since that may take seconds.
    """
    if loss in LOSSES or not _OWN_LOSS.fullmatch(loss):
        return loss
    module, name = _module_and_name(loss)
    try:
        found = importlib.util.find_spec(module)
    except Exception:
        found = None
    if found is None:
        raise UserError(
            f"loss {loss}: there is no module '{module}'; give package.module:function, installed "
            "or on PYTHONPATH"
        )
    return f"{module}:{name}"


def _module_and_name(loss: str) -> tuple[str, str]:
    module, _, name = loss.rpartition(":" if ":" in loss else ".")
    return module, name


def _if_osft(part: Any, run: Any) -> bool:
    return bool(part.osft)


@dataclass(frozen=True, kw_only=True)
class OSFTConfig:
    """Orthogonal subspace fine-tuning, see osft.py."""

    osft: bool = False
    """Orthogonal subspace fine-tuning: freeze the top singular directions of each matrix."""
    osft_unfreeze_rank_ratio: float = setting(0.25, hashed=_if_osft)
    """Share of the directions of each matrix that is trained, from 0.0 to 1.0 (osft)."""
    osft_target_patterns: tuple[str, ...] = setting((), hashed=_if_osft, before=())
    """Names of the linear layers (default: those of attention and MLP) (osft)."""

    def __post_init__(self) -> None:
        ratio = self.osft_unfreeze_rank_ratio
        require(self, "osft_unfreeze_rank_ratio", 0 <= ratio <= 1, "between 0.0 and 1.0")


def _with_experts(part: Any, run: Any) -> bool:
    return bool(run.has_experts)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the training loop reads: schedule, optimizer, precision and seed."""

    max_lr: float = 4e-3
    """Highest learning rate, reached at the end of the warmup."""
    min_lr: float | None = None
    """Learning rate at the end (default: 3e-5, or a tenth of max_lr if that is less)."""
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
    router_aux_loss_coef: float = setting(0.001, hashed=_with_experts)
    """Weight of the load-balancing loss of a mixture of experts."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute precision; auto: bf16 on CUDA, fp32 elsewhere."""
    seed: int = 0
    """Seed of the initial weights, the order of the samples and dropout."""

    def __post_init__(self) -> None:
        for name in ("max_lr", "grad_clip_value", "adam_epsilon"):
            require(self, name, 0 < getattr(self, name) < math.inf, "above zero")
        for name in ("weight_decay", "router_aux_loss_coef"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or more")
        for name in ("adam_beta1", "adam_beta2"):
            require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        require(self, "seed", 0 <= self.seed < 2**32, "in [0, 2**32)")
        require(self, "warmup_steps", self.warmup_steps >= 0, "zero or more")
        if self.min_lr is not None and not 0 <= self.min_lr <= self.max_lr:
            raise UserError(f"min_lr is {self.min_lr}; it must be between 0 and max_lr")

    @property
    def last_lr(self) -> float:
        """Learning rate at the end."""
        return min(3e-5, self.max_lr / 10) if self.min_lr is None else self.min_lr


def _of_fixed_length(part: Any, run: Any) -> bool:
    return not part.packed


def _if_packed(part: Any, run: Any) -> bool:
    return bool(part.packed)


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(LoopConfig, LossConfig, OSFTConfig):
    """Pre-training: the batch, the length of training, the optimizer and the loss."""

    total_batch_size: int = setting(524288, hashed=_of_fixed_length)
    """Tokens of an optimizer step over all ranks, in sequences of a fixed length (without
    --max_tokens_per_gpu)."""
    batch_size: int | None = setting(None, hashed=_if_packed)
    """Samples of an optimizer step over all ranks, with --max_tokens_per_gpu (default: 8). Without
    it, another name of --micro_batch_size."""
    packed: bool = setting(False, flag=False)
    """Whether samples are packed up to max_tokens_per_gpu."""
    seq_len: int | None = None
    """Tokens of a sequence (default: block_size)."""
    training_mode: Literal["epoch", "step", "token", "infinite"] = "epoch"
    """What ends training: max_epochs, max_steps, max_tokens, or only a signal."""
    max_epochs: int = 1
    """Passes over the data (mode epoch); each is one permutation."""
    max_steps: int | None = None
    """Number of optimizer steps; implies --training_mode step if no mode is given."""
    max_tokens: int | None = None
    """Tokens to train on; given alone, it means --training_mode token."""
    train_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights and optimizer states during training."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights in the saved model."""

    def __post_init__(self) -> None:
        for part in (LoopConfig, LossConfig, OSFTConfig):
            part.__post_init__(self)
        for name in ("total_batch_size", "max_epochs"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("batch_size", "seq_len", "max_steps", "max_tokens"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
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
    def mode(self) -> Literal["epoch", "step", "token", "infinite"]:
        """What ends training: a number of steps or tokens, if given, takes the place of epochs."""
        if self.training_mode == "epoch" and self.max_steps is not None:
            return "step"
        if self.training_mode == "epoch" and self.max_tokens is not None:
            return "token"
        return self.training_mode


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What a training writes on the way: checkpoints, models, logs, profiles."""

    save_every_steps: int = setting(5000, hashed=False)
    """Steps between checkpoints to resume from; a killed run loses at most this many steps."""
    keep_checkpoints: int = setting(KEPT, hashed=False)
    """Number of most recent checkpoints to keep."""
    min_samples_per_checkpoint: int | None = setting(None, hashed=False)
    """Export the model (hf_format/samples_N) each time this many more samples were trained on."""
    validation_every_steps: int | None = setting(None, hashed=False)
    """Steps between measurements of the validation loss (default: only at the end)."""
    save_best_val_loss: bool = setting(False, hashed=False)
    """Keep the model with the lowest validation loss."""
    log_steps: int = setting(1, hashed=False)
    """Steps between lines in metrics.jsonl."""
    log_dir: str | None = setting(None, hashed=False)
    """Folder of log.txt and profiles, a subfolder a run (default: TUNING_HOME/outputs/logs)."""
    use_profiler: bool = setting(False, hashed=False)
    """Record a trace of some steps."""
    steps_to_profile: tuple[int, ...] = setting((15, 20), hashed=False)
    """The first and the last step of the trace."""
    debug: bool = setting(False, hashed=False)
    """Write no checkpoints, unless the run is stopped by a signal."""

    def __post_init__(self) -> None:
        for name in ("save_every_steps", "keep_checkpoints", "log_steps"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("min_samples_per_checkpoint", "validation_every_steps"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
        steps = self.steps_to_profile
        fits = len(steps) == 2 and 0 < steps[0] <= steps[1]
        require(self, "steps_to_profile", fits, "two step numbers, the first one first")
