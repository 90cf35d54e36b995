"""Which samples of a global batch each rank takes in each micro-step, padding-free.

Ranks wait for each other at the end of every micro-step, so its costliest rank sets its time. Cost
is tokens plus a share for attention, which grows with their square. One LPT (longest processing
time first; Graham 1969) spreads the samples over all ranks of all micro-steps, and the loads are
dealt to micro-steps by falling cost: ranks of one micro-step then cost nearly the same. The inner
loops are compiled by numba, which is imported at the first call.
"""

from __future__ import annotations

import heapq
import pickle
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np

Plan = list[list[list[int]]]
"""[micro-step][rank] -> indices of samples; a rank may have none."""

LEVELS = 256
"""How finely the capacity is divided in the search for the least that fits."""


def pack(
    lengths: np.ndarray,
    *,
    capacity: int,
    ranks: int,
    squares: np.ndarray | None = None,
    quadratic: float = 0.0,
) -> Plan:
    """The micro-steps of one global batch, the costliest first; the same plan on every rank.

    There are never more micro-steps than first-fit decreasing needs.

    Args:
        lengths: [samples], tokens.
        capacity: The most tokens a rank takes in one micro-step.
        ranks: Ranks that take different samples.
        squares: [samples], what attention costs of each; lengths**2 unless given.
        quadratic: The cost of one unit of `squares`, in tokens.

    Raises:
        ValueError: A sample is longer than `capacity`.
    """
    # A copy, because the compiled code takes no read-only arrays; float64 holds tokens exactly.
    tokens = np.array(lengths, dtype=np.float64)
    if not len(tokens):
        return []
    over = np.flatnonzero(tokens > capacity)
    if len(over):
        raise ValueError(
            f"sample {over[0]} has {tokens[over[0]]:.0f} tokens, more than the {capacity} that a "
            "rank takes in one micro-step: truncate it, or raise the tokens of a rank"
        )
    cost = tokens + quadratic * (tokens**2 if squares is None else np.asarray(squares))
    bin_of, micro_steps = _assign(cost, tokens, capacity, ranks)
    return _deal(bin_of, cost, micro_steps, ranks)


def fill(plan: Plan, lengths: np.ndarray, capacity: int) -> float:
    """The plan's tokens over those its micro-steps could take, 0..1; 1.0 for an empty plan."""
    if not plan:
        return 1.0
    tokens = np.asarray(lengths)[_samples(plan)].sum()
    return float(tokens / (len(plan) * len(plan[0]) * capacity))


def balance(plan: Plan, cost: np.ndarray) -> float:
    """The mean time that a rank computes over the time of the step, 0..1; 1.0 if no rank waits.

    Mean cost of a rank over cost of the costliest rank, each summed over micro-steps.
    """
    if all(len(micro_step) == 1 for micro_step in plan):
        return 1.0
    sizes = [len(samples) for micro_step in plan for samples in micro_step]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    taken = np.asarray(cost)[_samples(plan)]
    loads = np.bincount(owner, taken, len(sizes)).reshape(len(plan), -1)
    longest = loads.max(axis=1).sum()
    return float(loads.mean(axis=1).sum() / longest) if longest else 1.0


def _samples(plan: Plan) -> np.ndarray:
    ranks = chain.from_iterable(plan)
    return np.fromiter(chain.from_iterable(ranks), dtype=np.int64)


def _assign(
    cost: np.ndarray, tokens: np.ndarray, capacity: int, ranks: int
) -> tuple[np.ndarray, int]:
    """[samples], the bin of each, and the micro-steps: the least for which LPT fits.

    LPT spreads the tokens and so the free space, and may need more bins than first-fit decreasing,
    mostly where samples are long beside the capacity. Then that packing is taken.
    """
    longest_first = _compiled(_longest_first, "b1(i8[::1], f8[::1], f8[::1], i8, f8, i8[::1])")
    by_cost = np.argsort(-cost, kind="stable")
    bin_of = np.empty(len(tokens), dtype=np.int64)

    def fits(micro_steps: int) -> bool:
        return longest_first(by_cost, cost, tokens, micro_steps * ranks, capacity, bin_of)

    low = _lower_bound(np.sort(tokens)[::-1], capacity, ranks)
    if fits(low):
        return bin_of, low
    by_tokens = np.argsort(-tokens, kind="stable")
    first_fit = _compiled(_first_fit, "i8(i8[::1], f8[::1], f8, i8[::1])")
    high = -(-first_fit(by_tokens, tokens, capacity, bin_of) // ranks)
    # Bisected: where two samples fill a bin, the bounds of a large batch are hundreds apart.
    micro_steps = low + 1 + bisect_left(range(low + 1, high + 1), True, key=fits)
    if micro_steps > high:
        _level(
            lambda room: first_fit(by_tokens, tokens, room, bin_of) <= high * ranks,
            least=max(int(tokens.max()), -int(-tokens.sum() // (high * ranks))),
            capacity=capacity,
        )
        return bin_of, high
    fits(micro_steps)
    return bin_of, micro_steps


def _lower_bound(falling: np.ndarray, capacity: int, ranks: int) -> int:
    """Micro-steps that no packing of these lengths, longest first, goes below.

    By all tokens; and because a bin takes only capacity // length samples of that length or more.
    """
    together = capacity // np.maximum(falling, 1)
    by_count = np.ceil(np.arange(1, len(falling) + 1) / together).max()
    bins = max(by_count, np.ceil(falling.sum() / capacity))
    return max(1, -int(-bins // ranks))


def _level(fits: Callable[[int], bool], *, least: int, capacity: int) -> None:
    """First-fit decreasing at nearly the least capacity that fits: no bin full, another empty.

    MULTIFIT (Coffman, Garey and Johnson 1978). Called last with a capacity that fits.
    """
    low, high = least, capacity
    while high - low > capacity // LEVELS:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    fits(high)


def _deal(bin_of: np.ndarray, cost: np.ndarray, micro_steps: int, ranks: int) -> Plan:
    """Bins to micro-steps by falling cost; the samples of a rank stay in their order."""
    bins = micro_steps * ranks
    place = np.empty(bins, dtype=np.int64)
    place[np.argsort(-np.bincount(bin_of, cost, bins), kind="stable")] = np.arange(bins)
    placed = place[bin_of]
    samples = np.argsort(placed, kind="stable").tolist()
    ends = np.cumsum(np.bincount(placed, minlength=bins)).tolist()
    dealt = [samples[begin:end] for begin, end in pairwise([0, *ends])]
    return [dealt[first : first + ranks] for first in range(0, bins, ranks)]


@cache
def _compiled(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """The function as machine code, kept on disk for the next process where that is possible."""
    import numba

    try:
        return numba.njit(signature, cache=True)(function)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        # No writable folder, a full disk, a truncated file: compile without the cache, in seconds.
        return numba.njit(signature)(function)


def _longest_first(
    order: np.ndarray,
    cost: np.ndarray,
    tokens: np.ndarray,
    bins: int,
    capacity: float,
    bin_of: np.ndarray,
) -> bool:
    """LPT: each sample to the bin of least cost that has room. False once one fits nowhere.

    Bins without room for a sample wait in `full`, by room, until one comes that fits. As lengths
    mostly fall, a bin waits once for each sample it takes: O(log bins) a sample.
    """
    load = np.zeros(bins)
    room = np.full(bins, capacity)
    ready = [(0.0, number) for number in range(bins)]
    full = [(0.0, number) for number in range(0)]
    for sample in order:
        size = tokens[sample]
        while full and -full[0][0] >= size:
            number = heapq.heappop(full)[1]
            heapq.heappush(ready, (load[number], number))
        while ready and room[ready[0][1]] < size:
            number = heapq.heappop(ready)[1]
            heapq.heappush(full, (-room[number], number))
        if not ready:
            return False
        number = ready[0][1]
        bin_of[sample] = number
        load[number] += cost[sample]
        room[number] -= size
        heapq.heapreplace(ready, (load[number], number))
    return True


def _first_fit(order: np.ndarray, tokens: np.ndarray, capacity: float, bin_of: np.ndarray) -> int:
    """Each sample to the first bin that has room; the number of bins used.

    The bins are the leaves of a tree whose nodes know the most room below them.
    """
    leaves = 1
    while leaves < len(order):
        leaves *= 2
    room = np.full(2 * leaves, capacity)
    used = 0
    for sample in order:
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < tokens[sample]:
                node += 1
        bin_of[sample] = node - leaves
        used = max(used, node - leaves + 1)
        room[node] -= tokens[sample]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return used
