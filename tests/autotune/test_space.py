"""Properties of the candidates, over random spaces."""

from __future__ import annotations

import random

import pytest

from tuning.autotune.space import KNOBS, Candidate, Space
from tuning.engine.config import ComputeConfig
from tuning.methods import METHODS
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit


def random_space(draw: random.Random) -> Space:
    nodes = draw.choice((1, 1, 2, 4))
    processes = nodes * draw.choice((1, 2, 3, 4, 8))
    return Space(
        target=processes * draw.randint(1, 100),
        processes=processes,
        nodes=nodes,
        method=draw.choice(sorted(KNOBS)),
        longest=draw.randint(10, 5000),
        mean=draw.uniform(5, 10),
        sep_sizes=draw.choice(((1,), (1, 2), (1, 2, 4))),
        compiles=draw.random() < 0.5,
        sharding=draw.choice((None, ("none", "full_shard", "hybrid_shard"))),
    )


@pytest.mark.parametrize("seed", range(200))
def test_every_candidate_keeps_the_effective_batch(seed):
    space = random_space(random.Random(seed))
    assert len(set(space.candidates)) == len(space.candidates)
    for c in space.candidates:
        ranks = space.processes // c.sep_size
        if c.micro_batch is not None:
            assert c.micro_batch * ranks * space.accumulation(c) == space.target
        if c.max_tokens_per_gpu is not None:
            assert c.max_tokens_per_gpu >= space.longest
        assert c.sharding != "hybrid_shard" or space.nodes > 1
        assert c.sharding == "none" or space.processes > 1
        assert (c.micro_batch is None) or space.knobs.micro_batch
        assert space.processes % c.sep_size == 0
        assert not c.use_compile or (space.knobs.use_compile and space.compiles)


def test_all_divisors_and_no_others():
    sizes = {c.micro_batch for c in Space(target=36, processes=3).candidates}
    assert sizes == {1, 2, 3, 4, 6, 12}


def test_what_does_not_divide_is_no_candidate():
    with pytest.raises(UserError, match="10 examples over 4 processes"):
        _ = Space(target=10, processes=4).candidates


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_depends_on_its_micro_batch_has_no_knob_for_it(name):
    assert KNOBS[name].micro_batch == METHODS[name].micro_batches


def test_kto_has_no_knob_but_checkpointing():
    space = Space(target=16, method="kto", fixed_micro_batch=4)
    assert {(c.micro_batch, c.max_tokens_per_gpu) for c in space.candidates} == {(None, None)}
    assert {c.gradient_checkpointing for c in space.candidates} == {True, False}
    assert {space.accumulation(c) for c in space.candidates} == {4}


def test_token_budgets_hold_the_longest_example_and_end_with_a_step():
    space = Space(target=32, processes=2, method="engine_sft", longest=1000, mean=500)
    budgets = sorted({c.max_tokens_per_gpu for c in space.candidates})
    assert budgets == [1000, 2000, 4000, 8000]
    assert {space.accumulation(c) for c in space.candidates} == {8, 4, 2, 1}


def test_a_candidate_as_the_settings_of_training():
    c = Candidate(micro_batch=2, gradient_checkpointing=False, sharding="full_shard", sep_size=2)
    assert c.compute_config() == ComputeConfig(
        micro_batch_size=2, gradient_checkpointing=False, parallel="fsdp2", sep_size=2
    )
    assert Candidate(max_tokens_per_gpu=512).compute_config().parallel == "ddp"
    assert Candidate(micro_batch=1, sharding="hybrid_shard").compute_config().parallel == "hsdp"


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "grpo"])
def test_a_trainer_of_trl_gets_nothing_that_it_refuses(method):
    space = Space(target=4, method=method)
    used = {"micro_batch_size", "gradient_checkpointing"}
    for c in space.candidates:
        compute = vars(space.compute_config(c))
        assert {k for k, v in compute.items() if v != vars(ComputeConfig())[k]} <= used


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ppo"}, "unknown method"),
        ({"processes": 3, "nodes": 2}, "2 nodes"),
        ({"target": 0}, "target is 0"),
        ({"method": "engine_sft"}, "longest"),
    ],
)
def test_impossible_spaces_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Space(**({"target": 8} | changes))
