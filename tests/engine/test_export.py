"""A model that is written is the model in memory, and transformers reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine import small
from tuning.engine import osft
from tuning.engine.export import write_model


@pytest.mark.parametrize("shape", ["gqa", "moe"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_is_what_is_in_memory(tmp_path: Path, shape: str, tied: bool, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(small.SHAPES, shape, replace(small.SHAPES[shape], tied_lm_head=tied))
    _, _, spread = small.train(tmp_path / "run", shape=shape, max_steps=2)
    write_model(spread, tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = spread.module.eval()(input_ids=ids).logits
        theirs = read(input_ids=ids).logits
    assert (ours - theirs).abs().max() <= 1e-5
    assert "documents" not in (tmp_path / "model/config.json").read_text()


def test_osft_is_merged(tmp_path: Path):
    weights, _, spread = small.train(tmp_path / "run", ratio=0.25)
    write_model(spread, tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert not any(isinstance(m, osft.OSFTLinear) for m in read.modules())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        ours = spread.module.eval()(input_ids=ids).logits
        assert (ours - read(input_ids=ids).logits).abs().max() <= 1e-5
    assert weights.keys() == {n for n, _ in read.named_parameters()}


def test_the_precision_that_is_asked_for(tmp_path: Path):
    _, _, spread = small.train(tmp_path / "run", max_steps=1)
    write_model(spread, tmp_path / "model", torch.bfloat16)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert read.dtype == torch.bfloat16
