"""Micro-steps, balance of the ranks, and milliseconds to pack a global batch: ours, ours with
quadratic=0 (plain LPT by tokens), samples in the order given, and TRL's packing.

python benchmarks/packing.py

Lengths are lognormal(6.5, 1.0), cut to 8..8192; a sample costs its tokens plus their square /
20,000, about the share of attention in a model of 0.25B. The step time is the sum over micro-steps
of the costliest rank, over what it would be if all ranks cost the same throughout. TRL packs rows
and not batches: its rows are dealt to ranks by size, and its time includes moving the tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import chain

import numpy as np

from tuning.engine.packing import Plan, balance, fill, pack

SIZES = (128, 2_048, 10_000)
RANKS = 8
CAPACITY = 16_384
QUADRATIC = 1 / 20_000
RUNS = 7
SEEDS = range(20)
MOST_OVER, MOST_MS = 0.002, 10.0


def drawn(samples: int, seed: int = 0) -> np.ndarray:
    """Lengths of the samples of one global batch."""
    lengths = np.random.default_rng(seed).lognormal(6.5, 1.0, samples)
    return np.clip(lengths, 8, 8192).astype(np.int64)


def cost_of(lengths: np.ndarray) -> np.ndarray:
    """Tokens and attention."""
    return lengths + QUADRATIC * lengths**2


def ours(lengths: np.ndarray) -> Plan:
    """LPT by cost."""
    return pack(lengths, capacity=CAPACITY, ranks=RANKS, quadratic=QUADRATIC)


def by_tokens(lengths: np.ndarray) -> Plan:
    """LPT by tokens: ours with quadratic 0."""
    return pack(lengths, capacity=CAPACITY, ranks=RANKS)


def in_order(lengths: np.ndarray) -> Plan:
    """The next rank when one is full."""
    rows: list[list[int]] = [[]]
    used = 0
    for sample, length in enumerate(lengths.tolist()):
        if used + length > CAPACITY:
            rows.append([])
            used = 0
        rows[-1].append(sample)
        used += length
    return dealt(rows)


def dealt(rows: list[list[int]]) -> Plan:
    """Rows to the ranks of micro-steps, in their order."""
    rows = rows + [[] for _ in range(-len(rows) % RANKS)]
    return [rows[first : first + RANKS] for first in range(0, len(rows), RANKS)]


PACKERS = {"ours": ours, "ours by tokens": by_tokens, "in order": in_order}


def by_trl(lengths: np.ndarray) -> tuple[Plan, np.ndarray, float]:
    """TRL's best-fit decreasing over the whole batch at once, and its milliseconds."""
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    # Tokens tell the sample that they are of.
    rows = [np.full(length, sample, np.int32) for sample, length in enumerate(lengths)]
    data = Dataset.from_dict({"input_ids": rows})
    options = {"batch_size": len(lengths), "keep_in_memory": True, "load_from_cache_file": False}

    def run() -> Dataset:
        return pack_dataset(data, CAPACITY, strategy="bfd", map_kwargs=options)

    packed = run()["input_ids"]
    samples = [list(dict.fromkeys(row)) for row in packed]
    samples.sort(key=lambda row: -lengths[row].sum())
    return dealt(samples), lengths, milliseconds(run)


def milliseconds(run: Callable[[], object]) -> float:
    """The median, after one that warms up."""
    run()
    found = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found) * 1000


def over_ideal(plan: Plan, lengths: np.ndarray) -> float:
    """Step time over that of ranks that all cost the same."""
    return 1 / balance(plan, cost_of(lengths))


def show(name: str, plan: Plan, lengths: np.ndarray, taken: float) -> None:
    """One line of the table."""
    rows = chain.from_iterable(plan)
    if sorted(chain.from_iterable(rows)) != list(range(len(lengths))):
        raise SystemExit(f"{name} lost or repeated samples")
    print(
        f"{name:14} {len(lengths):8,} {len(plan):12} {fill(plan, lengths, CAPACITY):6.3f} "
        f"{over_ideal(plan, lengths):13.4f} {taken:9.2f}",
        flush=True,
    )


def compare(samples: int) -> None:
    """One batch by every packer."""
    lengths = drawn(samples)
    for name, packer in PACKERS.items():
        run = partial(packer, lengths)
        show(name, run(), lengths, milliseconds(run))
    show("TRL bfd", *by_trl(lengths))


def aim(what: str, values: list[float], most: float, shown: str) -> None:
    """A line that says in how many draws an aim was reached."""
    reached = sum(value <= most for value in values)
    middle, worst = statistics.median(values), max(values)
    print(
        f"{what}: median {middle:{shown}}, worst {worst:{shown}}; aim {most:{shown}}, "
        f"reached in {reached} of {len(values)} draws"
    )


def show_aims() -> None:
    """What was aimed at, over more draws than the table's one."""
    batches = [drawn(2_048, seed) for seed in SEEDS]
    over = [over_ideal(ours(lengths), lengths) - 1 for lengths in batches]
    aim("2,048 samples, step time over the ideal", over, MOST_OVER, ".2%")
    taken = [milliseconds(partial(ours, drawn(10_000, seed))) for seed in SEEDS]
    aim("10,000 samples, milliseconds", taken, MOST_MS, ".1f")


def main() -> None:
    """Print one table, and what was aimed at."""
    started = time.perf_counter()
    ours(drawn(128))
    first = time.perf_counter() - started
    print(f"{RANKS} ranks, {CAPACITY:,} tokens a rank; ms is the median of {RUNS} after a warm-up")
    heads = f"{'micro-steps':>12} {'fill':>6} {'time / ideal':>13} {'ms':>9}"
    print(f"{'packer':14} {'samples':>8} {heads}")
    for samples in SIZES:
        compare(samples)
    show_aims()
    print(f"the first call of this process, with the import of numba: {first:.1f} s")


if __name__ == "__main__":
    main()
