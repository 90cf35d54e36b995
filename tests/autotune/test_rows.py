"""The rows of a trial, and the candidates and settings that follow from a run."""

from __future__ import annotations

import pytest

from tests import small_site
from tests.autotune.searches import candidate, pretraining, search_of
from tests.run_configs import fork, pt, sft
from tuning.autotune import cache
from tuning.autotune.config import AutotuneConfig, AutotuneRunConfig
from tuning.autotune.rows import Sample, chosen, sample_of, target_of
from tuning.autotune.subject import Subject, of_trial, tuned
from tuning.autotune.workload import Device
from tuning.training.config import largest_divisor

pytestmark = pytest.mark.unit
DEVICE = Device(name="a CPU", capacity=8 << 30)


@pytest.fixture(autouse=True)
def site(monkeypatch, tmp_path):
    small_site.use(monkeypatch, tmp_path)


def test_a_padded_batch_has_the_longest_row_and_the_whole_range():
    lengths = list(range(100, 0, -1))
    rows = chosen(lengths, 5, packed=False)
    assert [lengths[n] for n in rows] == [100, 87, 62, 38, 13]
    assert len({*chosen(lengths, 99, packed=False)}) == 99


def test_a_packed_batch_has_the_longest_rows():
    assert chosen([3, 9, 1, 7], 2, packed=True) == [1, 3]
    assert sorted(chosen([3, 9, 1, 7], 8, packed=True)) == [0, 1, 2, 3]


def test_random_tokens_stand_for_blocks(tmp_path):
    found = sample_of(search_of(), tmp_path / "lengths")
    assert found == Sample(numbers=None, longest=32, mean=32)
    assert not (tmp_path / "lengths").exists()


def test_a_micro_batch_that_is_tuned_is_exact():
    config = search_of()
    space = Subject(config, sample_of(config, None), DEVICE).space
    assert {c.micro_batch for c in space.candidates} == {1, 2, 4, 8}
    for c in space.candidates:
        assert c.micro_batch * space.accumulation(c) == target_of(config) == 8
        run = tuned(config, c)
        assert run.compute.micro_batch_size == c.micro_batch
        assert run.compute.gradient_checkpointing == c.gradient_checkpointing


def test_what_is_chosen_is_not_hashed():
    config = search_of()
    assert tuned(config, candidate()).hash == config.trained.hash
    run = sft()
    search = AutotuneRunConfig.of("sft", run, AutotuneConfig())
    assert tuned(search, candidate()).hash == run.hash


@pytest.mark.parametrize("size", range(1, 40))
def test_a_small_fork_gets_the_micro_batch_that_was_measured(size):
    run = fork()
    config = AutotuneRunConfig.of("pft", run, AutotuneConfig(), train_size=size)
    batch = target_of(config)
    assert batch == min(size, 32)
    space = Subject(config, Sample(numbers=(0,), longest=9, mean=9), DEVICE).space
    assert {c.micro_batch for c in space.candidates} >= {1, batch}
    for c in space.candidates:
        compute = tuned(config, c).compute
        assert largest_divisor(batch, compute.micro_batch_size) == c.micro_batch


def test_kto_keeps_its_micro_batch():
    config = AutotuneRunConfig.of("pft", pt("kto"), AutotuneConfig(), train_size=300)
    subject = Subject(config, Sample(numbers=(0,), longest=9, mean=9), DEVICE)
    assert {c.micro_batch for c in subject.space.candidates} == {None}
    made = tuned(config, subject.space.candidates[0])
    assert made.compute.micro_batch_size == config.trained.compute.micro_batch_size


def test_a_vllm_that_is_kept_beside_the_training_leaves_it_less_memory():
    def capacity(**values) -> int:
        asked = {"pass_at_k_targets": (0.3,), "pass_at_k_backend": "vllm", **values}
        config = AutotuneRunConfig.of("sft", sft(**asked), AutotuneConfig())
        subject = Subject(config, Sample(numbers=(0,), longest=9, mean=9), DEVICE)
        return subject.device.capacity

    assert capacity() == pytest.approx(0.7 * DEVICE.capacity, abs=1)
    assert capacity(vllm_gpu_memory_utilization=0.5) == DEVICE.capacity // 2
    for values in ({"use_persistent_vllm": False}, {"pass_at_k_backend": "hf"}):
        assert capacity(**values) == DEVICE.capacity


def test_a_trial_of_pretraining_writes_nothing_on_its_way():
    run = of_trial(search_of(pretraining(validation_split=0.5)), candidate(), {}, 8, 12)
    assert run.output.debug
    assert (run.training.max_steps, run.data.validation_split) == (12, 0.0)
    assert run.compute.micro_batch_size == 2


def test_the_key_changes_with_what_memory_and_speed_depend_on():
    def key(device=DEVICE, lengths=(100, 78.0), **values):
        config = search_of(pretraining(**values))
        sample = Sample(numbers=None, longest=lengths[0], mean=lengths[1])
        return cache.Entry(cache.about(Subject(config, sample, device))).key

    assert key() == key(seed=7) == key(max_steps=9) == key(micro_batch_size=4)
    assert key() == key(lengths=(101, 78.5))
    others = [
        key(hidden_size=64), key(total_batch_size=512), key(train_dtype="bfloat16"),
        key(lengths=(200, 80.0)), key(Device(name="another", capacity=8 << 30)),
        key(Device(name="a CPU", capacity=4 << 30)),
    ]  # fmt: skip
    assert len({key(), *others}) == 7
