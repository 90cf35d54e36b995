"""The training loop on a very small model: what is equal however a step is cut up, what a step
says, and what ends a training.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import small
from tuning.engine import loop, model, parallel, ranks
from tuning.engine.batches import Batches
from tuning.engine.config import LoopConfig
from tuning.engine.losses import cross_entropy, focal
from tuning.engine.samples import IGNORED, Rows
from tuning.runs.errors import UserError
from tuning.runs.manifest import checkpoints, is_whole

ALONE = ranks.layout(1)


def alone(shape: str) -> parallel.Spread:
    """A model alone in its process."""
    network = model.build(small.SHAPES[shape], seed=0, eos_token_id=1, pad_token_id=0)
    return parallel.spread(network, ALONE)


@pytest.mark.parametrize("shape", ["dense", "gqa"])
def test_accumulated_is_one_batch(tmp_path: Path, shape: str):
    whole, metrics, _ = small.train(tmp_path / "whole", shape=shape, batch_size=8)
    for size in (1, 3):
        parts, others, _ = small.train(tmp_path / f"{size}", shape=shape, batch_size=size)
        assert small.furthest(whole, parts) <= 1e-5
        assert [m["loss"] for m in others] == pytest.approx([m["loss"] for m in metrics], abs=1e-5)


def test_packed_is_unpacked(tmp_path: Path):
    """Rows that hold several samples, and rows that hold one each: the same training."""
    packed, metrics, _ = small.train(tmp_path / "packed", packed=True, batch_size=8)
    apart, others, _ = small.train(tmp_path / "apart", samples=small.rows(), batch_size=1)
    assert small.furthest(packed, apart) <= 1e-5
    assert [m["loss"] for m in metrics] == pytest.approx([m["loss"] for m in others], abs=1e-5)


def test_a_packed_row_has_the_loss_and_gradients_of_its_samples():
    placed = alone("gqa")
    samples = small.rows(8)
    batches = Batches(samples=samples, global_batch=8, seed=0, layout=ALONE, max_tokens=10_000)
    row = batches.row(range(8), torch.device("cpu"))
    loss, _ = loop.losses_of(placed, row, "fp32", cross_entropy)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in placed.module.named_parameters()}
    placed.module.zero_grad()
    stock = model.build(small.SHAPES["gqa"], seed=0, eos_token_id=1, pad_token_id=0)
    total = 0.0
    for number in range(8):
        ids, labels, _ = samples[number]
        logits = stock(input_ids=torch.from_numpy(ids)[None]).logits[0]
        one = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels), ignore_index=IGNORED, reduction="sum"
        )
        one.backward()
        total += one.item()
    assert loss.item() == pytest.approx(total, abs=1e-4)
    for name, p in stock.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, atol=2e-5, rtol=1e-4)


def test_the_loss_that_balances_experts_is_that_of_transformers():
    placed = alone("moe")
    batches = Batches(samples=small.blocks(), global_batch=4, seed=0, layout=ALONE)
    row = batches.row([0, 1, 2], torch.device("cpu"))
    _, balance = loop.losses_of(placed, row, "fp32", cross_entropy)
    with torch.no_grad():
        theirs = placed.module(
            input_ids=row.input_ids, position_ids=row.position_ids, documents=row.documents,
            output_router_logits=True,
        ).aux_loss  # fmt: skip
    assert balance.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_what_a_step_says(tmp_path: Path):
    _, metrics, _ = small.train(tmp_path, shape="moe")
    last = metrics[-1]
    assert last["step"] == 5 and last["samples"] == 40 and last["tokens"] == 40 * 32
    assert last["epoch"] == pytest.approx(5 / 6, abs=1e-3)
    assert last["mfu"] is None
    assert last["router_aux_loss"] > 0
    assert 0 < last["balance"] <= 1 and last["fill"] == 1
    assert last["loss_tokens"] < 8 * 32
    assert last["loss"] == pytest.approx(math.log(96), abs=0.5)


def test_another_loss_and_another_optimizer(tmp_path: Path):
    placed = alone("dense")
    batches = Batches(samples=small.blocks(), global_batch=8, seed=0, layout=ALONE)
    made = []

    def sgd(groups):
        made.append(torch.optim.SGD(groups, lr=0.1, momentum=0.9))
        return made[0]

    seen = []
    loop.train(
        placed, batches, small.CONFIG, steps=2, directory=tmp_path,
        loss_function=focal, optimizer=sgd, on_step=seen.append,
    )  # fmt: skip
    assert [g["weight_decay"] for g in made[0].param_groups] == [0.1, 0.0]
    assert seen[0]["loss"] < math.log(96)


def test_a_hook_ends_a_training_and_its_words_come_back(tmp_path: Path):
    def run(stop_at: int):
        placed = alone("dense")
        batches = Batches(samples=small.blocks(), global_batch=8, seed=0, layout=ALONE)
        calls = []

        def hook(state):
            calls.append((state.step, state.extra.get("last")))
            state.extra["last"] = state.step
            return state.step == stop_at

        config = replace(small.CONFIG, lr_scheduler="constant")
        state = loop.train(
            placed, batches, config, steps=None, directory=tmp_path, save_every=1, after_step=hook
        )
        return state, calls

    state, calls = run(2)
    assert state.step == 2 and calls == [(0, None), (1, 0), (2, 1)]
    state, calls = run(4)
    assert state.step == 4 and calls[0] == (3, 2)
    assert state.extra == {"last": 4}


def test_a_sample_without_loss_tokens_teaches_nothing(tmp_path: Path):
    ids = [np.arange(5)] * 4
    rows = Rows(ids, [np.full(5, IGNORED)] * 4)
    weights, metrics, _ = small.train(
        tmp_path, packed=True, samples=rows, max_steps=1, weight_decay=0.0
    )
    fresh = model.build(small.SHAPE, seed=0, eos_token_id=1, pad_token_id=0).state_dict()
    assert metrics[0]["loss"] == 0
    assert all(torch.equal(weights[k], fresh[k]) for k in weights)


def test_checkpoints_are_whole_and_few(tmp_path: Path):
    small.train(tmp_path, save_every_steps=1)
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 5]
    assert all(is_whole(path) for _, path in checkpoints(tmp_path))


def test_checkpoints_may_be_left_to_a_stop(tmp_path: Path):
    small.train(tmp_path / "run", save_every_steps=None)
    assert not checkpoints(tmp_path / "run")
    small.train(tmp_path / "stopped", save_every_steps=None, stop_after=3)
    assert [step for step, _ in checkpoints(tmp_path / "stopped")] == [3]


def test_a_trial_without_a_directory_writes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, metrics, _ = small.train(None, save_every_steps=1)
    straight, others, _ = small.train(tmp_path / "run")
    assert small.same(weights, straight)
    assert [m["loss"] for m in metrics] == [m["loss"] for m in others]
    _, stopped, _ = small.train(None, save_every_steps=1, stop_after=3)
    assert len(stopped) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_and_falls(kind: str):
    config = LoopConfig(max_lr=1.0, min_lr=0.1, warmup_steps=4, lr_scheduler=kind)
    rates = [loop.learning_rate(step, config, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_what_cannot_be_shared():
    config = model.architecture(small.SHAPES["moe"], eos_token_id=1, pad_token_id=0)
    for size, name in ((3, "num_attention_heads 8"), (16, "num_attention_heads 8")):
        with pytest.raises(UserError, match=f"sep_size {size} does not divide {name}"):
            parallel.check(config, size)
    with pytest.raises(UserError, match="seq_len 30"):
        parallel.check(config, 4, 30)
    from transformers import MistralConfig

    with pytest.raises(UserError, match="sliding window"):
        parallel.check(MistralConfig(sliding_window=64), 2)
    with pytest.raises(UserError, match="sep_size 2 does not divide the 1 processes"):
        ranks.layout(2)


@pytest.mark.parametrize("pad", [0, 1])
def test_a_token_that_ends_documents_and_fills_batches_begins_like_others(pad: int):
    """As the first token of a sequence, an embedding of zero has gradients that grow a
    hundredfold and more with each block: those of 24 blocks of 2,048 units are no numbers.
    """
    network = model.build(small.SHAPES["dense"], seed=0, eos_token_id=1, pad_token_id=pad)
    assert network.get_input_embeddings().weight[1].any()
    assert network.generation_config.pad_token_id == pad
