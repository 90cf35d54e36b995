"""A small space on a small device, and trials of it that come out as they are told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuning.autotune.cost import CostModel
from tuning.autotune.observation import Observation
from tuning.autotune.score import Scorer
from tuning.autotune.search import Budget, Result, search
from tuning.autotune.space import Candidate, Space
from tuning.autotune.strategies import strategy
from tuning.autotune.workload import Device, Workload

GIB = 2**30
CAPACITY = 24 * GIB
SCORER = Scorer(capacity=CAPACITY)
SPACE = Space(target=32)
WORKLOAD = Workload(
    parameters=1_000_000_000, trained=10_000_000, layers=24, hidden=1536, intermediate=6144,
    vocabulary=32000, longest=1024, mean=600.0,
)  # fmt: skip
DEVICE = Device(name="a device", capacity=CAPACITY, peak_flops=150e12)


def model(space: Space = SPACE, **changes: Any) -> CostModel:
    return CostModel(WORKLOAD, Device(**(vars(DEVICE) | changes)), space)


def ran(candidate: Candidate, *, memory: float, mfu: float | None, speed: float = 1000.0):
    """An observation: memory as a fraction of the capacity."""
    return Observation(
        candidate=candidate,
        outcome="ok",
        step_seconds=(1000.0 / speed,) * 3,
        peak_bytes=int(memory * CAPACITY),
        tokens_per_second=speed,
        mfu=mfu,
    )


def failed(candidate: Candidate, outcome: Any) -> Observation:
    return Observation(candidate=candidate, outcome=outcome)


def searched(
    name: str,
    trial: Callable[[Candidate], Observation],
    space: Space = SPACE,
    most: int = 15,
    **more: Any,
) -> Result:
    found = strategy(name, model(space), SCORER)
    budget = Budget(seconds=1e6, max_iterations=most)
    return search(space, found, trial, scorer=SCORER, budget=budget, **more)
