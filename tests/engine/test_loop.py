"""The training loop on a very small model: resumed = straight, accumulated = one batch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tuning.engine import loop
from tuning.engine.batches import Batches
from tuning.engine.config import ModelConfig, PretrainConfig
from tuning.engine.model import build
from tuning.runs.errors import Interrupted
from tuning.runs.manifest import checkpoints, is_whole, newest_whole

MODEL = ModelConfig(
    block_size=16,
    vocab_size=64,
    num_layer=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    hidden_size=32,
    intermediate_size=64,
    dropout=0.1,
)
CONFIG = PretrainConfig(total_steps=12, batch_size=8, warmup_steps=3, save_steps=4)
BATCHES = Batches(blocks=np.random.default_rng(0).integers(0, 64, (40, 17)), batch_size=8, seed=1)


def train(directory: Path, model: ModelConfig = MODEL, stop_after: int | None = None, **changes):
    """(weights, metrics of each step done here)."""
    metrics: list[dict] = []
    network = build(model, seed=0, eos_token_id=1, pad_token_id=0)
    try:
        loop.train(
            network,
            BATCHES,
            dataclasses.replace(CONFIG, **changes),
            directory=directory,
            on_step=metrics.append,
            should_stop=lambda: len(metrics) == stop_after,
        )
    except Interrupted:
        assert stop_after is not None
    return network.state_dict(), metrics


def assert_equal(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_resumed_is_straight(tmp_path):
    straight, all_metrics = train(tmp_path / "straight")
    _, before = train(tmp_path / "resumed", stop_after=6)
    torch.rand(3)
    resumed, after = train(tmp_path / "resumed")
    assert_equal(straight, resumed)
    assert [line["step"] for line in before + after] == list(range(1, 13))
    for name in ("loss", "lr", "grad_norm", "tokens"):
        assert [line[name] for line in before + after] == [line[name] for line in all_metrics]
    assert after[0]["seconds"] > before[-1]["seconds"]


def test_a_kill_loses_no_more_than_save_steps(tmp_path):
    class Killed(BaseException):
        pass

    def kill(line: dict) -> None:
        if line["step"] == 7:
            raise Killed

    network = build(MODEL, seed=0, eos_token_id=1, pad_token_id=0)
    with pytest.raises(Killed):
        loop.train(network, BATCHES, CONFIG, directory=tmp_path / "killed", on_step=kill)
    resumed, metrics = train(tmp_path / "killed")
    straight, _ = train(tmp_path / "straight")
    assert metrics[0]["step"] == 5
    assert_equal(straight, resumed)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    straight, _ = train(tmp_path / "straight")
    train(tmp_path / "damaged", stop_after=10)
    newest = newest_whole(tmp_path / "damaged")
    assert newest is not None and newest.name == "checkpoint-10"
    state = newest / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    (tmp_path / "damaged" / "checkpoint-11").mkdir()
    (tmp_path / "damaged" / "checkpoint-sweetspot-1.5").mkdir()
    resumed, metrics = train(tmp_path / "damaged")
    assert metrics[0]["step"] == 9
    assert_equal(straight, resumed)
    assert (tmp_path / "damaged" / "checkpoint-sweetspot-1.5").is_dir()


def test_two_checkpoints_are_kept(tmp_path):
    train(tmp_path)
    assert [step for step, _ in checkpoints(tmp_path)] == [8, 12]
    assert all(is_whole(path) for _, path in checkpoints(tmp_path))


def test_a_finished_training_does_nothing_more(tmp_path):
    first, _ = train(tmp_path)
    again, metrics = train(tmp_path)
    assert metrics == []
    assert_equal(first, again)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_accumulated_is_one_batch(tmp_path, micro_batch_size):
    model = dataclasses.replace(MODEL, dropout=0.0)
    whole, _ = train(tmp_path / "whole", model)
    parts, _ = train(tmp_path / "parts", model, micro_batch_size=micro_batch_size)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], atol=1e-5, rtol=1e-5)


def test_labels_without_a_loss_do_not_count(tmp_path):
    class Masked:
        def at(self, step: int):
            batch = BATCHES.at(step)
            batch.labels[:3] = -100
            batch.labels[3, :9] = -100
            return batch

    seen: list[dict] = []
    network = build(MODEL, seed=0, eos_token_id=1, pad_token_id=0)
    config = dataclasses.replace(CONFIG, total_steps=1, micro_batch_size=2)
    loop.train(network, Masked(), config, directory=tmp_path, on_step=seen.append)
    assert seen[0]["tokens"] == 4 * 16 + 7
    assert seen[0]["loss"] == pytest.approx(math.log(64), abs=0.5)


def test_bf16_learns_about_the_same(tmp_path):
    model = dataclasses.replace(MODEL, dropout=0.0)
    _, exact = train(tmp_path / "fp32", model)
    _, rounded = train(tmp_path / "bf16", model, precision="bf16")
    assert rounded[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.05)


def test_learning_rate_rises_and_falls():
    rates = [loop.learning_rate(step, CONFIG) for step in range(CONFIG.total_steps)]
    assert rates[CONFIG.warmup_steps - 1] == max(rates) == CONFIG.learning_rate
    assert rates[-1] == pytest.approx(CONFIG.min_learning_rate)


def test_an_epoch_is_one_permutation():
    one = dataclasses.replace(BATCHES, batch_size=16)
    rows = torch.cat([BATCHES.at(step).input_ids for step in range(5)])
    assert {tuple(row) for row in rows.tolist()} == {
        tuple(row) for row in BATCHES.blocks[:, :-1].tolist()
    }
    assert torch.equal(one.at(2).input_ids[8:], BATCHES.at(5).input_ids)
