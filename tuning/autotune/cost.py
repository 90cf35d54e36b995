"""What a candidate will take: peak memory and step time, predicted from analytic counts (terms.py)
and corrected by everything observed so far (fit.py). It says what cannot fit before it is tried,
what will fit, and how far its own predictions have been off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from tuning.autotune import terms
from tuning.autotune.fit import Array, Data, PositiveFit, Prior, Row, of_rows
from tuning.autotune.observation import Observation, latest
from tuning.autotune.score import LIMIT
from tuning.autotune.space import Candidate, Space
from tuning.autotune.workload import Device, Workload

MARGIN = 2.33
"""Standard errors between a prediction and the limit for a candidate to be said to fit: 1 in 100 of
such would not, if the errors are what the model believes."""
HOPELESS = 3.0
"""Standard errors between the capacity and a prediction for a candidate not to be tried at all."""
_MEMORY_PRIOR = Prior(
    terms=tuple(terms.MEMORY.values()), scale=0.05, discrepancy=0.06, length=2.0, noise=0.01
)
_TIME_PRIOR = Prior(
    terms=tuple(terms.TIME.values()), scale=0.2, discrepancy=0.15, length=1.5, noise=0.015
)
ELSEWHERE = 0.15, 0.4
"""Standard deviations of the logs of memory and time of a similar training, over what the counts
say of the difference."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a candidate will take, each with its standard error."""

    peak_bytes: float
    """Of one device."""
    peak_error: float
    """Bytes."""
    step_seconds: float
    """Of an optimizer step."""
    step_error: float
    """Seconds."""
    fits: bool
    """Whether it is within the limit by the margin."""
    hopeless: bool
    """Whether it cannot fit."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far predictions were off, each observation predicted from all the others."""

    memory: tuple[float, ...]
    """Absolute relative errors of peak memory."""
    time: tuple[float, ...]
    """Of step time."""

    def __str__(self) -> str:
        """In words, with the number of predictions."""
        if not self.time:
            return "nothing to compare predictions with"
        return (
            f"memory off by {100 * median(self.memory):.0f}% (worst {100 * max(self.memory):.0f}%)"
            f", time by {100 * median(self.time):.0f}% (worst {100 * max(self.time):.0f}%), "
            f"leaving out each of {len(self.time)}"
        )


class CostModel:
    """Predictions for the candidates of a space."""

    def __init__(
        self, workload: Workload, device: Device, space: Space, limit: float = LIMIT
    ) -> None:
        """`limit`: the fraction of the capacity that a candidate must stay within to fit."""
        self.workload, self.device, self.space, self.limit = workload, device, space, limit
        self._seen: dict[Candidate, Observation] = {}
        self._predicted: dict[Candidate, Prediction] = {}
        self._neighbours: list[CostModel] = []

    def observe(self, observation: Observation) -> None:
        """Learn from a trial; a crash, a hang and garbage teach nothing."""
        self._seen[observation.candidate] = observation
        self._predicted = {}

    def observe_all(self, observations: Iterable[Observation]) -> None:
        """Learn from several; of a candidate that was tried more than once, from the last."""
        for observation in latest(tuple(observations)).values():
            self.observe(observation)

    def warm(self, neighbour: CostModel) -> None:
        """Learn from what a model of a similar training has observed (another device, lengths or
        batch): its rows count with noise of their own, so that a trial here outweighs them."""
        self._neighbours.append(neighbour)
        self._predicted = {}

    def predict(self, candidate: Candidate) -> Prediction:
        """Memory and time of a candidate of the space."""
        return self.predictions()[candidate]

    def predictions(self) -> dict[Candidate, Prediction]:
        """Of every candidate of the space."""
        if not self._predicted:
            candidates = self.space.candidates
            features = np.array([self._features(c) for c in candidates])
            peak, peak_sd = self._memory(self._memory_data()).predict(
                np.array([self._memory_terms(c) for c in candidates]), features
            )
            step, step_sd = self._time(self._time_data()).predict(
                np.array([self._time_terms(c) for c in candidates]), features
            )
            rows = zip(candidates, peak, peak_sd, step, step_sd, strict=True)
            self._predicted = {c: self._prediction(*map(float, row)) for c, *row in rows}
        return self._predicted

    def errors(self) -> Errors:
        """Leave-one-out errors over the trials that ran."""
        return Errors(
            memory=tuple(_left_out(self._memory_data(), self._memory)),
            time=tuple(_left_out(self._time_data(), self._time)),
        )

    def _prediction(self, peak: float, peak_sd: float, step: float, step_sd: float) -> Prediction:
        log_limit = math.log(self.limit * self.device.capacity)
        return Prediction(
            peak_bytes=math.exp(peak),
            peak_error=math.exp(peak) * peak_sd,
            step_seconds=math.exp(step),
            step_error=math.exp(step) * step_sd,
            fits=peak + MARGIN * peak_sd <= log_limit,
            hopeless=peak - HOPELESS * peak_sd > math.log(self.device.capacity),
        )

    def _memory(self, data: Data) -> PositiveFit:
        return PositiveFit(_MEMORY_PRIOR, data)

    def _time(self, data: Data) -> PositiveFit:
        spreads = terms.TIME | ({} if self.device.peak_flops else terms.UNKNOWN)
        spreads |= {} if self.workload.lengths else terms.GUESSED
        return PositiveFit(replace(_TIME_PRIOR, terms=tuple(spreads.values())), data)

    def _memory_data(self) -> Data:
        """Peaks of the trials that ran; the capacity as a lower bound where memory ran out."""
        return of_rows([*self._memory_rows(), *self._theirs("_memory_rows", ELSEWHERE[0])])

    def _time_data(self) -> Data:
        return of_rows([*self._time_rows(), *self._theirs("_time_rows", ELSEWHERE[1])])

    def _theirs(self, rows: str, noise: float) -> Iterator[Row]:
        for neighbour in self._neighbours:
            yield from (replace(row, noise=noise) for row in getattr(neighbour, rows)())

    def _memory_rows(self) -> Iterator[Row]:
        for c, o in self._seen.items():
            if o.outcome == "oom" or (o.ok and o.peak_bytes):
                yield Row(
                    terms=self._memory_terms(c),
                    features=self._features(c),
                    value=float(o.peak_bytes or 1) if o.ok else float(self.device.capacity),
                    bound=not o.ok,
                )

    def _time_rows(self) -> Iterator[Row]:
        for c, o in self._seen.items():
            if o.ok and o.step:
                features = self._features(c)
                yield Row(terms=self._time_terms(c), features=features, value=o.step)

    def _memory_terms(self, c: Candidate) -> Array:
        found = terms.memory(self.workload, self.device, self.space, c)
        return np.array([found[name] for name in terms.MEMORY])

    def _time_terms(self, c: Candidate) -> Array:
        found = terms.seconds(self.workload, self.device, self.space, c)
        return np.array([found[name] for name in terms.TIME])

    def _features(self, c: Candidate) -> Array:
        """Where a candidate lies among the others: a doubling of its tokens is 1 apart, another
        value of a switch 2."""
        tokens = terms.tokens_of(self.workload, self.space, c, most=True)
        return np.array(
            [
                math.log2(tokens),
                2.0 * c.gradient_checkpointing,
                2.0 * ("none", "hybrid_shard", "full_shard").index(c.sharding),
                2.0 * c.use_compile,
                2.0 * math.log2(c.sep_size),
            ]
        )


def _left_out(data: Data, fit: Callable[[Data], PositiveFit]) -> Iterable[float]:
    """|predicted / observed - 1| of each exact observation, predicted from the others."""
    if len(data.values) < 2:
        return
    for row in np.flatnonzero(~data.bounds & (data.noise == 0)):
        mean, _ = fit(data.without(row)).predict(
            data.terms[row : row + 1], data.features[row : row + 1]
        )
        yield abs(math.exp(float(mean[0]) - float(data.values[row])) - 1)
