"""Causal attention over documents that lie end to end in one row: none sees another, nothing is
padded.

Registered with transformers as an attention implementation, so that stock model classes run it
unchanged; the model is called with `documents=Documents(...)`. On CUDA in half precision it is one
variable-length kernel. Elsewhere documents of like length are gathered into a batch: filled up at
the end, causal attention needs no mask, and the fill is dropped again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tuning.engine import sep
from tuning.weights import kernels

NAME = "documents"
LIKE = 0.75
"""Documents share a batch where the shortest is at least this share of the longest."""
UNKNOWN = ("softcap", "s_aux", "sinks", "head_mask")
"""Keyword arguments of models whose attention is another function than this one."""


@dataclass(frozen=True)
class Group:
    """Documents of like length."""

    documents: int
    length: int
    tokens: torch.Tensor
    """[documents * length] places in the row, the fill pointing at a document's last token."""


class Documents:
    """The boundaries of the documents in a packed row, on the device that computes."""

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        device: torch.device | str = "cpu",
        longest: int | None = None,
    ) -> None:
        """`longest`: an upper bound on the lengths that is the same for all rows, if known."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.device = torch.device(device)
        self.longest = int(longest or self.lengths.max())

    @cached_property
    def offsets(self) -> torch.Tensor:
        """[documents + 1], int32: where each begins, and where the last one ends."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        return self._tensor(ends.astype(np.int32))

    @property
    def positions(self) -> np.ndarray:
        """[tokens] the position of each token in its document."""
        ends = np.cumsum(self.lengths)
        return np.arange(ends[-1]) - np.repeat(ends - self.lengths, self.lengths)

    @cached_property
    def uniform(self) -> bool:
        """Whether all documents have the same length."""
        return bool((self.lengths == self.lengths[0]).all())

    @cached_property
    def groups(self) -> tuple[tuple[Group, ...], torch.Tensor]:
        """The documents grouped by length, and the index of each token of the row in the groups."""
        starts = np.cumsum(self.lengths) - self.lengths
        order = np.argsort(-self.lengths, kind="stable")
        place = np.empty(int(self.lengths.sum()), dtype=np.int64)
        made, first, base = [], 0, 0
        while first < len(order):
            length = int(self.lengths[order[first]])
            alike = int((self.lengths[order[first:]] >= LIKE * length).sum())
            members = order[first : first + alike]
            within = np.minimum(np.arange(length), self.lengths[members][:, None] - 1)
            tokens = starts[members][:, None] + within
            made.append(Group(alike, length, self._tensor(tokens.reshape(-1))))
            real = np.arange(length) < self.lengths[members][:, None]
            place[tokens[real]] = base + np.flatnonzero(real)
            first, base = first + alike, base + alike * length
        return tuple(made), self._tensor(place)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents | None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention within each document.

    Args:
        q: [1, heads, tokens, width]; without `documents`, [batch, heads, tokens, width].
        k: Like q, with as many heads or fewer (grouped queries).
        v: Like k.
        documents: None where every row is one sequence (fill at the end is harmless).
        scale: Of the scores; None for 1 / sqrt(width).
        dropout: Probability, on the attention weights.
        window: How many tokens back a token sees, itself included; None for all.

    Returns:
        The shape of q.
    """
    options: dict[str, Any] = {"scale": scale, "dropout": dropout, "window": window}
    if documents is None:
        return _causal(q, k, v, **options)
    if documents.uniform:
        shape = (len(documents.lengths), int(documents.lengths[0]))
        rows = _causal(_rows(q, *shape), _rows(k, *shape), _rows(v, *shape), **options)
        return rows.transpose(0, 1).reshape(q.shape)
    if dropout == 0 and fits_kernel(q):
        return _varlen(q, k, v, documents, scale, window)
    groups, place = documents.groups
    parts = []
    for group in groups:
        shape = (group.documents, group.length)
        a, b, c = (_rows(x.index_select(2, group.tokens), *shape) for x in (q, k, v))
        rows = _causal(a, b, c, **options)
        parts.append(rows.transpose(0, 1).reshape(q.shape[1], -1, q.shape[3]))
    return torch.cat(parts, 1).index_select(1, place)[None]


def fits_kernel(q: torch.Tensor) -> bool:
    """Whether the variable-length kernel, FlashAttention 2, takes such queries."""
    fits = q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] % 8 == 0 and q.shape[3] <= 256
    return q.is_cuda and fits and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _rows(x: torch.Tensor, documents: int, length: int) -> torch.Tensor:
    """[1, heads, documents * length, width] as [documents, heads, length, width]."""
    return x.reshape(x.shape[1], documents, length, x.shape[3]).transpose(0, 1)


def _causal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    mask = None
    length = q.shape[2]
    if window is not None and window < length:
        place = torch.arange(length, device=q.device)
        back = place[:, None] - place[None]
        mask = (back >= 0) & (back < window)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if q.shape[1] != k.shape[1] and _takes_groups(varlen_attn):
        grouped["enable_gqa"] = True
    elif q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    flat_q, flat_k, flat_v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    out = varlen_attn(
        flat_q,
        flat_k,
        flat_v,
        documents.offsets,
        documents.offsets,
        documents.longest,
        documents.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(out, torch.Tensor)
    return out.transpose(0, 1)[None]


@cache
def _takes_groups(kernel: Any) -> bool:
    """Whether the kernel of this torch takes fewer keys than queries; that of 2.11 does not."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def _as_computed(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
    """The tensors in the dtype of autocast, if it is on: norms and rotary embeddings leave queries
    and keys in float32 beside values in bfloat16, and no kernel takes a mixture.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return [x.to(torch.get_autocast_dtype(kind)) for x in tensors]


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The interface of transformers around `attend()`; [batch, tokens, heads, width] comes back.

    With sequence parallelism, a process has all heads of its part of the tokens before and after,
    and its part of the heads for all tokens in between.
    """
    for name in UNKNOWN:
        if others.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} needs '{name}' in its attention")
    query, key, value = _as_computed(query, key, value)
    group = sep.group_of(module)
    if group is not None:
        query, key, value = sep.to_heads(query, key, value, group)
    out = attend(
        query, key, value, documents, scale=scaling, dropout=dropout, window=sliding_window
    )
    if group is not None:
        out = sep.to_tokens(out, group)
    return out.transpose(1, 2).contiguous(), None


def keep_out_of_graphs() -> None:
    """Let torch.compile call attention and not trace it: what it does depends on the lengths of the
    documents, which would break graphs several times a block.
    """
    AttentionInterface.register(NAME, torch.compiler.disable(document_attention))


AttentionInterface.register(NAME, document_attention)
kernels.leave_out_cudnn_attention()
