"""Predictions: what observations of either kind do to them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from tests.autotune.small import CAPACITY, DEVICE, GIB, SPACE, WORKLOAD, failed, model, ran
from tuning.autotune import terms
from tuning.autotune.cost import CostModel
from tuning.autotune.fit import Data, PositiveFit, Prior, Row, of_rows
from tuning.autotune.space import Candidate, Space
from tuning.autotune.workload import Device, Workload
from tuning.engine.config import ModelConfig
from tuning.engine.run_config import shape_of
from tuning.flags import build
from tuning.weights.config import LoraConfig
from tuning.weights.shape import adapter_of

pytestmark = pytest.mark.unit
SMALL = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
PRIOR = Prior(terms=(0.5, 0.5), scale=0.05, discrepancy=0.03, length=1.0, noise=0.01)


def at(size: int, checkpointing: bool = True) -> Candidate:
    return Candidate(micro_batch=size, gradient_checkpointing=checkpointing)


def data(values, bounds=None) -> Data:
    """Of two terms, a constant and one that grows with the row's number."""
    return of_rows(
        [
            Row(
                terms=np.array([1.0, 1.0 + n]),
                features=np.array([float(n)]),
                value=value,
                bound=bool(bounds and bounds[n]),
            )
            for n, value in enumerate(values)
        ]
    )


def test_without_observations_it_is_the_sum_of_the_terms():
    mean, spread = PositiveFit(PRIOR, data([])).predict(np.array([[1.0, 3.0]]), np.array([[0.0]]))
    assert mean[0] == pytest.approx(math.log(4.0))
    assert 0.2 < spread[0] < 0.5


def test_observations_give_the_factors():
    found = PositiveFit(PRIOR, data([2.0 + 0.5 * (1 + n) for n in range(6)]))
    mean, spread = found.predict(np.array([[1.0, 7.0]]), np.array([[6.0]]))
    assert math.exp(mean[0]) == pytest.approx(5.5, rel=0.03)
    assert spread[0] < 0.05


def test_a_lower_bound_raises_what_was_expected_below_and_nothing_else():
    terms_, features = np.array([[1.0, 3.0]]), np.array([[5.0]])
    before, wide = PositiveFit(PRIOR, data([])).predict(terms_, features)
    low, _ = PositiveFit(PRIOR, data([0.5], [True])).predict(terms_, features)
    high, narrow = PositiveFit(PRIOR, data([6.0], [True])).predict(terms_, features)
    absurd, _ = PositiveFit(PRIOR, data([1e6], [True])).predict(terms_, features)
    assert low[0] == pytest.approx(before[0], abs=0.01)
    assert high[0] > before[0] + 0.3
    assert narrow[0] < wide[0]
    assert np.isfinite(absurd).all()


@pytest.mark.parametrize("seed", range(20))
def test_any_observations_leave_finite_predictions(seed):
    draw = random.Random(seed)
    cost = model(peak_flops=draw.choice((None, 150e12)))
    for candidate in draw.sample(cost.space.candidates, 6):
        outcome = draw.choice(("ok", "ok", "oom", "crash", "hang", "garbage"))
        if outcome == "ok":
            mfu, speed = draw.uniform(0.001, 0.9), math.exp(draw.uniform(-3, 12))
            cost.observe(ran(candidate, memory=draw.uniform(0.01, 1), mfu=mfu, speed=speed))
        else:
            cost.observe(failed(candidate, outcome))
    for p in cost.predictions().values():
        numbers = (p.peak_bytes, p.peak_error, p.step_seconds, p.step_error)
        assert all(math.isfinite(n) and n > 0 for n in numbers)


def test_one_observation_corrects_its_neighbours():
    cost = model()
    before = cost.predict(at(8))
    cost.observe(ran(at(4), memory=0.5, mfu=0.2, speed=10.0))
    there, near = cost.predict(at(4)), cost.predict(at(8))
    assert there.peak_bytes == pytest.approx(0.5 * CAPACITY, rel=0.02)
    assert there.step_seconds == pytest.approx(100.0, rel=0.03)
    assert near.peak_error / near.peak_bytes < before.peak_error / before.peak_bytes
    assert near.step_seconds > 10 * before.step_seconds


def test_out_of_memory_is_a_lower_bound():
    cost = model()
    before = cost.predictions()
    fitting = [c for c, p in before.items() if p.fits and not c.gradient_checkpointing]
    largest = max(fitting, key=lambda c: c.micro_batch or 0)
    cost.observe(failed(largest, "oom"))
    assert not cost.predict(largest).fits
    assert all(cost.predict(c).peak_bytes >= p.peak_bytes for c, p in before.items())


@pytest.mark.parametrize("outcome", ["crash", "hang", "garbage"])
def test_other_failures_teach_nothing(outcome):
    cost = model()
    before = cost.predictions()
    cost.observe(failed(at(4), outcome))
    assert cost.predictions() == before


def test_what_cannot_fit_is_hopeless_and_what_fits_is_not():
    cost = model(Space(target=256))
    predictions = cost.predictions()
    assert predictions[at(1)].fits
    assert predictions[at(256, False)].hopeless
    assert not any(p.fits and p.hopeless for p in predictions.values())


def test_memory_grows_and_checkpointing_saves():
    space = Space(target=32, processes=4, method="pretrain")
    device = Device(name="NVIDIA H100 80GB HBM3", capacity=80 * GIB, count=4)

    def total(candidate: Candidate) -> float:
        return sum(terms.memory(WORKLOAD, device, space, candidate).values())

    for c in space.candidates:
        if c.micro_batch < 8:
            assert total(replace(c, micro_batch=2 * c.micro_batch)) > total(c)
        if c.gradient_checkpointing:
            assert total(replace(c, gradient_checkpointing=False)) > total(c)


def test_its_errors_are_of_predictions_without_the_one_predicted():
    cost = model()
    assert str(cost.errors()) == "nothing to compare predictions with"
    for size in (1, 2, 4):
        cost.observe(ran(at(size), memory=0.1 + 0.05 * size, mfu=0.2, speed=100.0))
    errors = cost.errors()
    assert len(errors.memory) == len(errors.time) == 3
    assert all(0 < e < 1 for e in errors.memory)
    assert "leaving out each of 3" in str(errors)


def test_a_model_of_a_shape_and_its_adapter():
    shape = shape_of(build(ModelConfig, {"vocab_size": 512, "num_layer": 3} | SMALL))
    adapter = adapter_of(shape, LoraConfig())
    whole = Workload.of(shape, longest=64, mean=32.0)
    lora = Workload.of(shape, adapter, longest=64, mean=32.0, sequences=2)
    assert (whole.trained, whole.lora) == (shape.parameters, False)
    assert (lora.trained, lora.lora, lora.sequences) == (adapter.trained, True, 2)
    assert lora.flops_per_token < whole.flops_per_token


def test_a_neighbour_warms_and_a_trial_here_outweighs_it():
    neighbour = CostModel(replace(WORKLOAD, longest=512, mean=300.0), DEVICE, SPACE)
    expected = neighbour.predictions()
    for size in (1, 2, 4):
        peak = 2 * expected[at(size)].peak_bytes / CAPACITY
        neighbour.observe(ran(at(size), memory=peak, mfu=0.2, speed=1.0))
    cold, warm = model(), model()
    warm.warm(neighbour)
    before, after = cold.predict(at(4)), warm.predict(at(4))
    assert 1.3 * before.peak_bytes < after.peak_bytes < 2.1 * before.peak_bytes
    assert after.step_seconds > 2 * before.step_seconds
    warm.observe(ran(at(4), memory=0.3, mfu=0.2, speed=1000.0))
    corrected = warm.predict(at(4))
    assert corrected.peak_bytes == pytest.approx(0.3 * CAPACITY, rel=0.03)
    assert corrected.step_seconds == pytest.approx(1.0, rel=0.05)
    assert len(warm.errors().time) == 1


def test_sampling_takes_as_long_whatever_the_micro_batch():
    sampled = replace(WORKLOAD, sampled=512, sequences=8)
    first, second = (terms.seconds(sampled, DEVICE, SPACE, at(n))["sampling"] for n in (1, 4))
    assert first == second > 0


def test_padding_is_that_of_the_lengths():
    lengths = (10, 20, 30, 40)
    space = Space(target=8)
    known = replace(WORKLOAD, lengths=lengths, longest=40, mean=25.0)
    pairs = [max(a, b) for a in lengths for b in lengths]
    assert terms.padding_of(known, space, at(1)) == pytest.approx(1.0)
    assert terms.padding_of(known, space, at(2)) == pytest.approx(sum(pairs) / 16 / 25)
    guessed = [terms.padding_of(WORKLOAD, space, at(n)) for n in (1, 2, 4, 8)]
    assert guessed == sorted(guessed)
    assert guessed[0] == 1.0
    assert guessed[-1] < WORKLOAD.longest / WORKLOAD.mean


def test_the_peak_of_a_device_is_found_by_its_name():
    assert Device.named("NVIDIA L40S", 48 * GIB).peak_flops == 362e12
    assert Device.named("cpu", 8 * GIB).peak_flops is None
    assert Device.named("NVIDIA L40S", 48 * GIB, precision="fp32").peak_flops == 91.6e12
