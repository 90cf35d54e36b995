"""Attention over documents in one row is that of each document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from tuning.engine import attention, model, parallel
from tuning.engine.attention import Documents, attend
from tuning.engine.config import ModelConfig

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


@pytest.mark.parametrize("torch_2_11", [False, True], ids=["grouped", "torch 2.11"])
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_gets_what_it_takes(monkeypatch, torch_2_11, window):
    """The kernel stands on GPUs only: here a stand-in of its signature, grouped queries or not."""
    lengths = [1, 9, 3]

    def kernel(q, k, v, begins, ends, most_q, most_k, *, scale=None, window_size=(-1, -1), **more):
        assert (
            q.is_contiguous() and begins.dtype == torch.int32 and begins.tolist() == [0, 1, 10, 13]
        )
        assert (most_q, most_k) == (9, 9)
        assert window_size == ((-1, 0) if window is None else (window - 1, 0))
        assert more == ({} if torch_2_11 else {"enable_gqa": True})
        assert (q.shape[1] == k.shape[1]) == torch_2_11
        return one_by_one(*(x.transpose(0, 1)[None] for x in (q, k, v)), lengths, window)[
            0
        ].transpose(0, 1)

    def of_2_11(q, k, v, begins, ends, most_q, most_k, *, scale=None, window_size=(-1, -1)):
        return kernel(q, k, v, begins, ends, most_q, most_k, scale=scale, window_size=window_size)

    def newer(*args, scale=None, window_size=(-1, -1), enable_gqa=False):
        return kernel(*args, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    monkeypatch.setattr(varlen, "varlen_attn", of_2_11 if torch_2_11 else newer)
    monkeypatch.setattr(attention, "fits_kernel", lambda q: True)
    q, k, v = tensors(sum(lengths))
    found = attend(q, k, v, Documents(lengths), window=window)
    torch.testing.assert_close(found, one_by_one(q, k, v, lengths, window), atol=1e-10, rtol=0)


SMALL = ModelConfig(
    block_size=32, vocab_size=64, num_layer=2, num_attention_heads=4, num_key_value_heads=2,
    hidden_size=32, intermediate_size=32,
)  # fmt: skip


def packed(network, lengths):
    """A model's logits of documents in one row."""
    documents = Documents(lengths)
    ids = torch.arange(sum(lengths))[None] % SMALL.vocab_size
    places = torch.from_numpy(documents.positions)[None]
    return network(
        input_ids=ids, position_ids=places, documents=documents, use_cache=False
    ).logits  # fmt: skip


def test_under_autocast_attention_is_in_half_precision(monkeypatch):
    network = model.build(SMALL, seed=0, eos_token_id=1, pad_token_id=0)
    network.set_attn_implementation(attention.NAME)
    seen = []

    def spied(*args, **kwargs):
        seen.extend(x.dtype for x in args[:3])
        return attend(*args, **kwargs)

    monkeypatch.setattr(attention, "attend", spied)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed(network, [5, 3])
    assert set(seen) == {torch.bfloat16}


def test_a_compiled_block_is_interrupted_by_attention_alone():
    from torch._dynamo.utils import counters

    network = model.build(SMALL, seed=0, eos_token_id=1, pad_token_id=0)
    network.set_attn_implementation(attention.NAME)
    expected = packed(network, [5, 3])
    attention.keep_out_of_graphs()
    counters.clear()
    try:
        for block in parallel.layers_of(network):
            block.compile(backend="eager")
        torch.testing.assert_close(packed(network, [5, 3]), expected)
        for lengths in ([4, 4], [7, 2, 6], [9, 1]):
            packed(network, lengths)
    finally:
        attention.AttentionInterface.register(attention.NAME, attention.document_attention)
    assert counters["graph_break"]
    assert all("disable" in reason for reason in counters["graph_break"])
