"""Packing: every sample once, no rank over its capacity, few micro-steps, ranks that cost alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tuning.engine import packing
from tuning.engine.packing import balance, fill, pack

pytestmark = pytest.mark.unit

QUADRATIC = 1 / 20_000


def lognormal(samples: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(6.5, 1.0, samples)
    return np.clip(drawn, 8, 8192).astype(np.int64)


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> int:
    """Bins, the plain way."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        for number, room in enumerate(rooms):
            if room >= length:
                rooms[number] -= length
                break
        else:
            rooms.append(capacity - length)
    return len(rooms)


def drawn_case(seed: int) -> tuple[np.ndarray, int, int]:
    """Lengths, capacity and ranks; samples that are short, any, half a rank's, or cut off."""
    draw = np.random.default_rng(seed)
    samples, ranks = int(draw.integers(1, 150)), int(draw.choice([1, 2, 3, 8]))
    capacity = int(draw.choice([100, 1000, 16_384]))
    lengths = [
        draw.lognormal(np.log(capacity) - draw.uniform(1, 4), 1.0, samples),
        draw.uniform(0, capacity, samples),
        draw.uniform(capacity / 4, capacity / 2, samples),
        np.minimum(draw.lognormal(np.log(capacity) - 1, 1.0, samples), capacity * draw.uniform()),
    ][seed % 4]
    return np.clip(np.ceil(lengths), 0, capacity).astype(np.int64), capacity, ranks


def checked(plan: packing.Plan, lengths: np.ndarray, capacity: int, ranks: int) -> packing.Plan:
    """The plan, if it is one of these lengths."""
    assert all(len(micro_step) == ranks for micro_step in plan)
    rows = [samples for micro_step in plan for samples in micro_step]
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= capacity for row in rows)
    return plan


@pytest.mark.parametrize("squares", ["of the lengths", "of their own"])
def test_any_lengths_fit_in_no_more_micro_steps_than_first_fit_decreasing(squares):
    for seed in range(300):
        lengths, capacity, ranks = drawn_case(seed)
        own = np.random.default_rng(seed).uniform(0, 1, len(lengths)) * lengths**2
        given = own if squares == "of their own" else None
        plan = pack(
            lengths, capacity=capacity, ranks=ranks, squares=given, quadratic=1.0 / capacity
        )
        checked(plan, lengths, capacity, ranks)
        bins = first_fit_decreasing(lengths, capacity)
        assert 1 <= len(plan) <= -(-bins // ranks), f"seed {seed}"


def test_where_first_fit_decreasing_fits_and_lpt_does_not_no_rank_is_left_with_little():
    lengths = np.random.default_rng(9).integers(26, 50, 300)
    plan = checked(pack(lengths, capacity=100, ranks=16), lengths, 100, 16)
    assert len(plan) == -(-first_fit_decreasing(lengths, 100) // 16)
    assert balance(plan, lengths) > 0.97  # first-fit decreasing's own bins: 0.92


def test_twice_the_same():
    lengths = lognormal(500)
    again = pack(lengths.copy(), capacity=16_384, ranks=8, quadratic=QUADRATIC)
    assert pack(lengths, capacity=16_384, ranks=8, quadratic=QUADRATIC) == again


@pytest.mark.parametrize(("samples", "least"), [(2048, 0.998), (10_000, 0.999)])
def test_ranks_of_a_micro_step_cost_alike(samples, least):
    lengths = lognormal(samples)
    cost = lengths + QUADRATIC * lengths**2
    plan = pack(lengths, capacity=16_384, ranks=8, quadratic=QUADRATIC)
    checked(plan, lengths, 16_384, 8)
    assert balance(plan, cost) > least
    assert fill(plan, lengths, 16_384) > 0.95
    assert balance(pack(lengths, capacity=16_384, ranks=8), lengths) > least


def test_one_long_sample_does_not_add_a_micro_step():
    lengths = np.array([100, *[10] * 30])
    plan = checked(pack(lengths, capacity=100, ranks=4), lengths, 100, 4)
    assert len(plan) == 1
    assert [0] in plan[0]


def test_the_costliest_micro_step_comes_first():
    lengths = lognormal(300)
    plan = pack(lengths, capacity=16_384, ranks=2)
    loads = [lengths[row].sum() for micro_step in plan for row in micro_step]
    assert loads == sorted(loads, reverse=True)


def test_samples_of_one_length_are_shared_out():
    # Two fill a rank, so that half of the samples' tokens say nothing of the micro-steps.
    lengths = np.full(4000, 40)
    plan = checked(pack(lengths, capacity=100, ranks=4), lengths, 100, 4)
    assert len(plan) == 500
    assert {len(row) for micro_step in plan for row in micro_step} == {2}
    assert plan[0] == pack(lengths, capacity=100, ranks=4)[0]


def test_fewer_samples_than_ranks_leave_ranks_empty():
    assert pack(np.array([5]), capacity=5, ranks=3) == [[[0], [], []]]
    plan = pack(np.array([0, 0]), capacity=5, ranks=1)
    assert plan == [[[0, 1]]]
    assert balance(plan, np.zeros(2)) == 1.0


def test_attention_is_spread_by_the_squares_that_are_given():
    lengths, squares = np.full(4, 10), np.array([90, 10, 10, 90])
    plan = pack(lengths, capacity=20, ranks=2, squares=squares, quadratic=1.0)
    assert balance(plan, lengths + squares) == 1.0


def test_lengths_may_be_read_only_and_of_any_integer_type():
    lengths = lognormal(50)[::2]
    expected = pack(lengths.tolist(), capacity=16_384, ranks=2)
    narrow = lengths.astype(np.int32)
    narrow.flags.writeable = False
    assert pack(narrow, capacity=16_384, ranks=2) == expected


def test_nothing_to_pack():
    assert pack(np.array([], dtype=np.int64), capacity=10, ranks=2) == []
    assert fill([], np.array([]), 10) == balance([], np.array([])) == 1.0


def test_fill_and_balance_by_hand():
    plan = [[[0, 2], [1]], [[3], []]]
    lengths = np.array([3, 4, 1, 2])
    assert fill(plan, lengths, 5) == 10 / 20
    assert balance(plan, lengths) == (4 + 1) / (4 + 2)


def test_a_sample_longer_than_the_capacity_is_named():
    with pytest.raises(ValueError, match=r"^sample 1 has 101 tokens, more than the 100"):
        pack(np.array([100, 101]), capacity=100, ranks=2)


def test_importing_it_imports_no_numba():
    code = "import sys, tuning.engine.packing; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_read_only_installation_packs_without_a_cache(tmp_path):
    # Files stand where numba would make its folders, because root may write to read-only ones.
    installed = shutil.copy(packing.__file__, tmp_path / "packing.py")
    (tmp_path / "__pycache__").write_text("")
    code = (
        "import numba, packing, sys\n"
        "try:\n    numba.njit(cache=True)(packing._first_fit)\n"
        "except RuntimeError:\n    print(packing.pack([3, 4], capacity=5, ranks=2))\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(installed), "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "[[[1], [0]]]\n"


def test_a_cache_that_a_crash_cut_short_is_done_without(tmp_path):
    shutil.copy(packing.__file__, tmp_path / "packing.py")
    code = (
        "import packing; signature = 'i8(i8[::1], f8[::1], f8, i8[::1])'\n"
        "assert packing._compiled(packing._first_fit, signature)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
        kept = list(tmp_path.glob("__pycache__/*.nb?"))
        assert len(kept) == 2
        for file in kept:
            file.write_bytes(b"")
