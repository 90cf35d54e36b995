"""The shape of a decoder-only transformer and of an adapter over it: how many parameters they have.
From settings or a config.json; no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.runs.atomic import read_object
from tuning.weights.config import LoraConfig

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a parameter."""
_PLAIN = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "olmo2",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""Architectures (model_type) of the blocks that `Shape` describes."""
_ENDS = {"embed_tokens", "lm_head"}
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

    @property
    def parameters(self) -> int:
        """All weights; biases and the norms of queries and keys are left out."""
        block = sum(n * m for n, m in self.linears.values()) + 2 * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return embeddings + self.layers * block + self.hidden


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The parameters of a LoRA adapter."""

    saved: int
    """On disk; a tied embedding and output projection are saved both."""
    trained: int


def adapter_of(shape: Shape, lora: LoraConfig) -> Adapter:
    """The adapter of a run: r * (inputs + outputs) for each layer in target_modules (Hu et al.
    2021, section 4.1), and each of full_modules whole.
    """
    whole = _last_words(lora.full_modules)
    targets = _last_words(lora.target_modules) - whole
    widths = sum(sum(shape.linears[name]) for name in targets & shape.linears.keys())
    trained = shape.layers * lora.lora_r * widths + parameters_of(shape, lora.full_modules)
    twice = shape.tied and bool(whole & _ENDS)
    return Adapter(saved=trained + twice * shape.vocabulary * shape.hidden, trained=trained)


def in_subspaces(shape: Shape, ratio: float, patterns: Iterable[str] = ()) -> Adapter:
    """All weights as the engine holds them with OSFT (engine/osft.py): a matched matrix stays, and
    has the bases of what may move and, trained, the matrix between them.

    `ratio`: the share of a matrix's rank that is trained; `patterns`: parts of the names of the
    matched ones, all of a block by default.
    """
    saved = trained = shape.parameters
    for name, (inputs, outputs) in shape.linears.items():
        if ratio == 1.0 or not any(part in name for part in (tuple(patterns) or (name,))):
            continue
        trained -= shape.layers * inputs * outputs
        rank = min(inputs, outputs)
        kept = min(max(rank - round(rank * ratio), 1), rank - 1)
        if ratio:
            left, right = outputs - kept, inputs - kept
            trained += shape.layers * left * right
            saved += shape.layers * (left * outputs + left * right + right * inputs)
    return Adapter(saved=saved, trained=trained)


def parameters_of(shape: Shape, modules: Iterable[str]) -> int:
    """The parameters of modules by their names; those that are tied count once."""
    names = _last_words(modules)
    blocks = sum(n * m for name, (n, m) in shape.linears.items() if name in names)
    ends = min(len(names & _ENDS), 1 if shape.tied else 2)
    return shape.layers * blocks + ends * shape.vocabulary * shape.hidden


def _last_words(names: Iterable[str]) -> set[str]:
    """`model.embed_tokens` and `embed_tokens` are the same module."""
    return {name.rpartition(".")[2] for name in names}


def read_shape(folder: Path) -> Shape | None:
    """The shape that a folder's config.json gives; None where there is none, or it is of an
    architecture that is not known.
    """
    try:
        c: dict[str, Any] = read_object(folder / "config.json") or {}
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
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return None


def linears(
    *, hidden: int, inner: int, heads: int, key_heads: int, head: int
) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers of a block, by the names that transformers gives."""
    queries, keys = head * heads, head * key_heads
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
