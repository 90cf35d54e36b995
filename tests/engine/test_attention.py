"""Attention over documents in one row is that of each document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tuning.engine.attention import Documents, attend

pytestmark = pytest.mark.unit
LENGTHS = ([7], [5, 5, 5], [1, 9, 3, 8, 7, 1, 2], [30, 2, 2, 1])


def tensors(tokens: int, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(1, n, tokens, 8, dtype=torch.float64, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    ]


def one_by_one(q, k, v, lengths, window=None):
    """The obvious way: a document at a time, with a mask."""
    out = []
    for a, b, c in zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True):
        place = torch.arange(a.shape[2])
        back = place[:, None] - place[None]
        mask = (back >= 0) & (back < (window or len(place)))
        out.append(F.scaled_dot_product_attention(a, b, c, attn_mask=mask, enable_gqa=True))
    return torch.cat(out, 2)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("window", [None, 3])
def test_documents_do_not_see_each_other(lengths, window):
    q, k, v = tensors(sum(lengths))
    found = attend(q, k, v, Documents(lengths), window=window)
    expected = one_by_one(q, k, v, lengths, window)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    weight = torch.randn_like(found)
    grads = torch.autograd.grad((found * weight).sum(), (q, k, v))
    others = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other, atol=1e-10, rtol=0)


def test_without_documents_every_row_is_a_sequence():
    q, k, v = (torch.randn(3, 2, 5, 4) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attend(q, k, v, None), expected)


def test_positions_begin_anew_with_every_document():
    assert Documents([3, 1, 4]).positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_documents_of_like_length_are_few_batches():
    lengths = np.random.default_rng(0).lognormal(5, 1, 500).astype(int).clip(1)
    groups, place = Documents(lengths).groups
    assert len(groups) < 40
    assert len(place) == lengths.sum() == len(set(place.tolist()))
