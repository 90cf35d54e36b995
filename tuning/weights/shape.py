"""The shape of a decoder-only transformer and of an adapter over it: how many parameters, and how
many bytes they take on disk. From settings or a config.json; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.runs.atomic import read_json
from tuning.weights.config import LoraConfig

FLOAT32, BFLOAT16 = 4, 2
_HEADER = 130
"""Bytes that a safetensors file takes to name one tensor."""
_ADAPTER_FILES = 8_000
"""adapter_config.json, the model card and the chat template beside an adapter."""
_PLAIN = (
    "gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3",
)  # fmt: skip
"""Architectures (model_type) of the blocks that `Shape` describes."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A model has one of these."""
_TIED = ("gemma", "gemma2", "gemma3_text", "smollm3")
"""Those whose output projection is the embedding unless config.json says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder-only transformer in numbers."""

    layers: int
    linears: dict[str, tuple[int, int]]
    """(inputs, outputs) of each linear layer of a block, by its name."""
    vocabulary: int
    hidden: int
    tied: bool
    tokenizer: int
    """Bytes of the tokenizer's files."""

    @property
    def parameters(self) -> int:
        """All weights; biases and the norms of queries and keys are left out."""
        block = sum(n * m for n, m in self.linears.values()) + 2 * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return embeddings + self.layers * block + self.hidden


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a LoRA adapter consists of: parameters that are saved, and those that are trained."""

    saved: int
    trained: int
    tensors: int

    @property
    def bytes(self) -> int:
        """On disk: what is trained is float32 whatever the base model is in."""
        return FLOAT32 * self.saved + _HEADER * self.tensors + _ADAPTER_FILES


def adapter_of(shape: Shape, lora: LoraConfig) -> Adapter:
    """The adapter of a run: r * (inputs + outputs) for each layer in target_modules (Hu et al.
    2021, section 4.1), and each of full_modules whole.

    Of a tied embedding and output projection, one is trained and both are saved.
    """
    ends = {"embed_tokens", "lm_head"}
    whole = {name.rpartition(".")[2] for name in lora.full_modules}
    saved = tensors = 0
    for name, (inputs, outputs) in shape.linears.items():
        if name in whole:
            saved, tensors = saved + shape.layers * inputs * outputs, tensors + shape.layers
        elif name in {target.rpartition(".")[2] for target in lora.target_modules}:
            saved += shape.layers * lora.lora_r * (inputs + outputs)
            tensors += 2 * shape.layers
    trained_ends = whole & ends
    saved_ends = ends if trained_ends and shape.tied else trained_ends
    table = shape.vocabulary * shape.hidden
    return Adapter(
        saved=saved + len(saved_ends) * table,
        trained=saved + (1 if shape.tied and trained_ends else len(trained_ends)) * table,
        tensors=tensors + len(saved_ends),
    )


def read_shape(folder: Path) -> Shape | None:
    """The shape that a folder's config.json gives; None where there is none, or it is of an
    architecture that is not known.
    """
    try:
        c: dict[str, Any] = read_json(folder / "config.json") or {}
        if c["model_type"] not in _PLAIN:
            return None
        heads = c["num_attention_heads"]
        return Shape(
            layers=c["num_hidden_layers"],
            linears=linears(
                hidden=c["hidden_size"],
                inner=c["intermediate_size"],
                heads=heads,
                key_heads=c.get("num_key_value_heads") or heads,
                head=c.get("head_dim") or c["hidden_size"] // heads,
            ),
            vocabulary=int(c["vocab_size"]),
            hidden=c["hidden_size"],
            tied=c.get("tie_word_embeddings", c["model_type"] in _TIED),
            tokenizer=_tokenizer_bytes(folder),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return None


def linears(
    *, hidden: int, inner: int, heads: int, key_heads: int, head: int
) -> dict[str, tuple[int, int]]:
    queries, keys = head * heads, head * key_heads
    return {
        "q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys),
        "o_proj": (queries, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }  # fmt: skip


def _tokenizer_bytes(folder: Path) -> int:
    """Of tokenizer.json, which is what is saved, or of what stands for it."""
    there = (folder / name for name in TOKENIZERS if (folder / name).is_file())
    return next((path.stat().st_size for path in there), 0)
