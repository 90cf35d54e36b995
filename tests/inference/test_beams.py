"""The beam search of other engines finds what transformers' own finds, on the same network."""

from __future__ import annotations

import pytest
import torch

from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.inference.beams import BeamSearch

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=64, vocab_size=40, num_layer=1, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32,
)  # fmt: skip


def network(seed: int):
    """A random one whose next tokens differ in likelihood, so that some beams end early."""
    made = build(SHAPE, seed=seed, eos_token_id=0, pad_token_id=0).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6.0)
    return made


@torch.no_grad()
def found(model, prompt: list[int], search: BeamSearch) -> list[tuple[int, ...]]:
    """The best beams, with the likeliest tokens after each as an engine gives them."""
    while not search.over:
        rows = torch.tensor([[*prompt, *tokens] for _, tokens in search.running])
        best = model(rows).logits[:, -1].float().log_softmax(-1).topk(search.candidates)
        search.advance(
            [
                dict(zip(ids.tolist(), values.tolist(), strict=True))
                for ids, values in zip(best.indices, best.values, strict=True)
            ]
        )
    return [tokens for _, tokens in search.ended]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("ends", [[0], [0, 7, 11, 19, 23]])
@pytest.mark.parametrize("longest", [1, 5, 12])
def test_it_finds_what_transformers_finds(width: int, ends: list[int], longest: int) -> None:
    lengths = set()
    for seed in range(6):
        model = network(seed)
        prompt = torch.randint(1, 40, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        expected = model.generate(
            torch.tensor([prompt]), num_beams=width, num_return_sequences=width, do_sample=False,
            max_new_tokens=longest, eos_token_id=ends, pad_token_id=39,
        )[:, len(prompt):].tolist()  # fmt: skip
        search = BeamSearch(width=width, ends=ends, longest=longest)
        got = [list(tokens) for tokens in found(model, prompt, search)]
        lengths |= {len(tokens) for tokens in got}
        most = max(map(len, got))
        assert [tokens + [39] * (most - len(tokens)) for tokens in got] == expected
    assert len(ends) == 1 or longest < 12 or len(lengths) > 2
